import type { IncomingMessage, ServerResponse } from 'node:http';
import type { Socket } from 'node:net';
import { type Ending, knownRequestState, type ResponseObserver, requestState } from './request-state.js';

const WAITING = Symbol.for('tollkeeper.waiting');

type Carrier = Socket & { [WAITING]?: ServerResponse[] };

/**
 * Calls the observer once when the response is over, whichever way: finished, aborted by the client, destroyed, or
 * pipelined behind an abort, where Node up to 22 emits nothing on `res` and only the socket's `close` tells.
 *
 * One shared `close` listener per response and one per socket; nothing on `res` is replaced.
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
  const socket = res.req.socket as (Socket & { errored?: Error | null }) | null;
  const stream = (res as { stream?: { rstCode?: number } }).stream;
  const complete =
    res.writableFinished &&
    res.writableEnded &&
    !socket?.errored &&
    !(res.req as { aborted?: boolean }).aborted &&
    !stream?.rstCode;
  if (complete) return { outcome: res.statusCode >= 500 ? 'server_error' : 'complete', status: res.statusCode };
  return { outcome: 'client_aborted', status: res.headersSent ? res.statusCode : 499 };
}
