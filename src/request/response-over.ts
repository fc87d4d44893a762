import type { IncomingMessage, ServerResponse } from 'node:http';
import type { Socket } from 'node:net';
import { type Ending, knownRequestState, type ResponseObserver, requestState } from './request-state.js';

const WAITING = Symbol.for('tollkeeper.waiting');

type Carrier = Socket & { [WAITING]?: ServerResponse[] };

/** What Node's HTTP/2 compatibility layer has, and the core has not. */
type MaybeHttp2 = ServerResponse & { readonly stream?: { readonly rstCode?: number; readonly errored?: Error | null } };

/**
 * Calls the observer once when the response is over, whichever way: finished, aborted by the client, destroyed, or
 * pipelined behind an abort, where Node up to 22 emits nothing on `res` and only the socket's `close` tells.
 *
 * One shared `close` listener per response and, over HTTP/1.1, one per socket; nothing on `res` is replaced.
 */
export function whenResponseIsOver(req: IncomingMessage, res: ServerResponse, observer: ResponseObserver): void {
  const state = requestState(req);
  if (state.observers !== undefined) {
    state.observers.push(observer);
    return;
  }
  state.observers = [observer];
  res.on('close', onResponseClose);
  const socket = req.socket as Carrier | null;
  if (socket == null || res.destroyed || socket.destroyed) {
    // The client is gone already: no further event will tell.
    if (socket?.destroyed === true) queueMicrotask(() => finalize(res));
    return;
  }
  // Over HTTP/2 `close` always comes, and the socket belongs to the session: what waited there would stay for as long.
  if ((res as MaybeHttp2).stream !== undefined) return;
  const waiting = socket[WAITING];
  if (waiting === undefined) {
    socket[WAITING] = [res];
    socket.on('close', onSocketClose);
  } else waiting.push(res);
}

function onResponseClose(this: ServerResponse): void {
  const waiting = (this.req.socket as Carrier | null)?.[WAITING];
  if (waiting !== undefined) {
    const index = waiting.indexOf(this);
    if (index !== -1) waiting.splice(index, 1);
  }
  finalize(this);
}

function onSocketClose(this: Carrier): void {
  const waiting = this[WAITING];
  if (waiting === undefined) return;
  for (const res of waiting.splice(0)) finalize(res);
}

function finalize(res: ServerResponse): void {
  const state = knownRequestState(res.req);
  if (state === undefined || state.over) return;
  state.over = true;
  const observers = state.observers;
  state.observers = undefined;
  if (observers !== undefined) {
    const ending = endingOf(res);
    for (const observer of observers) observer.over(state, ending);
  }
  if (state.usage !== undefined) state.usage.closed = true;
}

/** How the response ended, as far as Node lets it be known: a snapshot at `close`. */
export function endingOf(res: ServerResponse): Ending {
  const { req, statusCode, headersSent } = res;
  const { stream } = res as MaybeHttp2;
  const complete =
    res.writableFinished && res.writableEnded && !req.socket?.errored && !req.aborted && !stream?.rstCode;
  if (complete) return { outcome: statusCode >= 500 ? 'server_error' : 'complete', status: statusCode };
  const byServer = stream === undefined ? socketCutHere(res) : streamCutHere(res, stream);
  if (byServer) return { outcome: 'server_error', status: headersSent ? statusCode : 500 };
  return { outcome: 'client_aborted', status: headersSent ? statusCode : 499 };
}

/**
 * Whether this side cut the connection: `res.destroy()`, also by `stream.pipeline` when its source fails, a timeout, the
 * end of the server. A client that leaves shows itself on the socket, by its end or by an error.
 */
function socketCutHere(res: ServerResponse): boolean {
  const { socket } = res.req;
  // A socket that is gone altogether tells nothing.
  if (socket == null || socket.readableEnded) return false;
  const { errored } = socket;
  // `ECANCELED`: bytes that were unsent when this side destroyed it, from Node 22 on.
  return errored == null || errored === res.errored || (errored as NodeJS.ErrnoException).code === 'ECANCELED';
}

/**
 * Whether the handler destroyed the stream: a reset that the client sent, or a session that it left, ends it in order
 * first. Only errors of a socket have a `syscall`; a stream that the handler resets by a code looks like the client's.
 */
function streamCutHere(res: ServerResponse, { errored }: { readonly errored?: Error | null }): boolean {
  return !res.writableFinished && (errored as NodeJS.ErrnoException | null | undefined)?.syscall === undefined;
}
