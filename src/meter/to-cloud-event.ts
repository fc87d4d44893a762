import type { UsageEvent } from './usage-event.js';

/** A usage event in the form of CloudEvents 1.0. */
export interface CloudEvent {
  readonly specversion: '1.0';
  readonly id: string;
  readonly source: string;
  readonly type: string;
  /** RFC 3339. */
  readonly time: string;
  /** Whom the usage is attributed to; absent on a correction. */
  readonly subject?: string;
  readonly datacontenttype: 'application/json';
  /** The rest of the usage event. */
  readonly data: Omit<UsageEvent, 'id' | 'source' | 'type' | 'time'>;
}

/** The CloudEvents 1.0 form of a usage event: `id` and `source` identify it, `subject` is its `authId`. */
export function toCloudEvent(event: UsageEvent): CloudEvent {
  const { id, source, type, time, ...data } = event;
  return {
    specversion: '1.0',
    id,
    source,
    type,
    time,
    ...(event.authId === undefined ? {} : { subject: event.authId }),
    datacontenttype: 'application/json',
    data,
  };
}
