// Express 4 under an alias; only what both versions have is used of it.
declare module 'express4' {
  import express from 'express';
  export default express;
}
