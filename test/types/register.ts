declare module 'tollkeeper' {
  interface Register {
    scope: 'reports:read' | 'reports:write';
    plan: 'free' | 'pro';
    dimensions: { model: string };
  }
}

export {};
