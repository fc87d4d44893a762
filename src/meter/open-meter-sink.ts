import { OptionsParser } from '../errors/options-parser.js';
import { isEndpoint, postEvents } from './post-events.js';
import type { Sink, SinkLimits, Verdict } from './sink.js';
import type { UsageEvent } from './usage-event.js';

export interface OpenMeterSinkOptions {
  /** The server's base URL, without a path: events go to `/api/v1/events` below it. */
  readonly url: string;
  /** Sent as a bearer token. */
  readonly token: string;
  /** Whom the usage is counted for. Default: the tenant, else the client, else the authId. Without one an event is rejected. */
  readonly subject?: (event: UsageEvent) => string | undefined;
  /** Default `openmeter`. */
  readonly name?: string;
  readonly role?: 'billing' | 'observational';
  readonly limits?: SinkLimits;
  readonly fetch?: typeof fetch;
}

/**
 * Posts usage events to OpenMeter, as batches of CloudEvents. It dedupes by `source` and `id`; a batch that was taken in part
 * is sent again whole, with the same ids. `data` holds the quantities and the dimensions by their names.
 *
 * @throws TypeError that lists every problem of the options.
 */
export function openMeterSink(options: OpenMeterSinkOptions): Sink {
  const parser = new OptionsParser('openMeterSink');
  const given = parser.known(options, ['url', 'token', 'subject', 'name', 'role', 'limits', 'fetch']);
  const { url, token, name = 'openmeter', role, limits, fetch: send = fetch } = given;
  const isBase = isEndpoint(url) && new URL(url).pathname === '/' && !/[?#]/.test(url);
  parser.check(isBase, 'url must be an http(s) URL without a path and without credentials');
  parser.check(typeof token === 'string' && /^[\x21-\x7E]+$/.test(token), 'token must be printable ASCII');
  parser.optionalFunction('subject', given.subject);
  parser.optionalFunction('fetch', given.fetch);
  parser.done();
  const subjectOf = given.subject ?? (({ tenant, clientId, authId }: UsageEvent) => tenant ?? clientId ?? authId);
  const endpoint = new URL('/api/v1/events', url).href;
  // The media type is matched exactly: a parameter after it is refused.
  const headers = { authorization: `Bearer ${token}`, 'content-type': 'application/cloudevents-batch+json' };

  return {
    name,
    role,
    limits: { maxEvents: 100, ...limits },
    async write(events, signal) {
      const forms = events.map((event) => toOpenMeter(event, subjectOf(event)));
      const fitting = forms.filter((form) => form !== undefined);
      const verdict: Verdict | undefined =
        fitting.length === 0
          ? undefined
          : await postEvents({
              fetch: send,
              url: endpoint,
              headers,
              body: JSON.stringify(fitting),
              signal,
              single: fitting.length === 1,
            });
      return forms.map((form) =>
        form === undefined || verdict === undefined
          ? { outcome: 'reject', reason: 'the event has no subject' }
          : verdict,
      );
    },
  };
}

function toOpenMeter(event: UsageEvent, subject: string | undefined): object | undefined {
  if (typeof subject !== 'string' || subject === '') return undefined;
  const { id, source, type, time, quantities, dimensions, authId, clientId, tenant, plan, outcome, billable } = event;
  const used = Object.entries(quantities).map(([name, { value }]) => [name, value] as const);
  return {
    specversion: '1.0',
    id,
    source,
    type,
    time,
    subject,
    datacontenttype: 'application/json',
    data: { ...dimensions, authId, clientId, tenant, plan, outcome, billable, ...Object.fromEntries(used) },
  };
}
