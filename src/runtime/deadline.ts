/** Thrown by `withDeadline` when the time is over. */
export class DeadlineError extends Error {
  override readonly name: string = 'DeadlineError';
  readonly code = 'deadline';
}

/**
 * Runs `work` with a signal that aborts after `timeoutMs`, and settles by then at the latest even if `work` does not
 * listen to the signal. Made of `setTimeout` and an `AbortController`: a signal made by `AbortSignal.any` with
 * `AbortSignal.timeout` was seen not to fire on Node 20, and an abort does not end every hanging body.
 *
 * @throws DeadlineError when the time is over or `outer` aborts; whatever `work` throws.
 */
export function withDeadline<T>(timeoutMs: number, work: (signal: AbortSignal) => Promise<T>, outer?: AbortSignal) {
  return new Promise<T>((resolve, reject) => {
    const controller = new AbortController();
    const giveUp = (): void => {
      const error = new DeadlineError(outer?.aborted === true ? 'aborted' : `no answer within ${timeoutMs} ms`);
      controller.abort(error);
      settle(() => reject(error));
    };
    const timer = setTimeout(giveUp, timeoutMs);
    const settle = (finish: () => void): void => {
      clearTimeout(timer);
      outer?.removeEventListener('abort', giveUp);
      finish();
    };
    if (outer?.aborted === true) return giveUp();
    outer?.addEventListener('abort', giveUp, { once: true });
    try {
      work(controller.signal).then(
        (value) => settle(() => resolve(value)),
        (error) => settle(() => reject(error)),
      );
    } catch (error) {
      settle(() => reject(error));
    }
  });
}

/**
 * Settles with what `read` makes of the outcome of work that has begun already and was given no signal by this: making
 * one, and a promise per step, costs more than all of the rest.
 *
 * @param refusal what to reject with when the work fails, or with a DeadlineError when the time is over.
 */
export function settledWithin<T, R>(
  timeoutMs: number,
  work: Promise<T>,
  read: (value: T) => R | Promise<R>,
  refusal: (error: unknown) => unknown,
) {
  return new Promise<R>((resolve, reject) => {
    let over = false;
    const timer = setTimeout(() => {
      over = true;
      reject(refusal(new DeadlineError(`no answer within ${timeoutMs} ms`)));
    }, timeoutMs);
    work.then(
      (value) => {
        clearTimeout(timer);
        if (over) return;
        try {
          resolve(read(value));
        } catch (error) {
          reject(error);
        }
      },
      (error) => {
        clearTimeout(timer);
        if (!over) reject(refusal(error));
      },
    );
  });
}
