import { OptionsParser } from '../errors/options-parser.js';
import { isEndpoint, postEvents } from './post-events.js';
import type { Sink, SinkLimits, Verdict } from './sink.js';
import { type CloudEvent, toCloudEvent } from './to-cloud-event.js';
import type { UsageEvent } from './usage-event.js';

export interface CloudEventsSinkOptions {
  /** Where events are posted to, without credentials in it. */
  readonly url: string;
  /**
   * `single`: one event per request, `application/cloudevents+json`. `batch`: a JSON array,
   * `application/cloudevents-batch+json`, for receivers that take it. `binary`: attributes as headers, the data as body.
   */
  readonly mode: 'single' | 'batch' | 'binary';
  /** Sent as a bearer token. */
  readonly token?: string;
  /** Default `cloudevents`. */
  readonly name?: string;
  readonly role?: 'billing' | 'observational';
  readonly limits?: SinkLimits;
  readonly fetch?: typeof fetch;
}

/** CloudEvents 1.0 §size limits: what every intermediary must forward. */
const MAX_EVENT_BYTES = 64 * 1024;

/**
 * Posts usage events as CloudEvents 1.0 (HTTP protocol binding). At least once, with stable ids: the receiver dedupes by
 * `source` and `id`. Redirects are never followed.
 *
 * @throws TypeError that lists every problem of the options.
 */
export function cloudEventsSink(options: CloudEventsSinkOptions): Sink {
  const parser = new OptionsParser('cloudEventsSink');
  const given = parser.known(options, ['url', 'mode', 'token', 'name', 'role', 'limits', 'fetch']);
  const { url, name = 'cloudevents', role, limits, token, fetch: send = fetch } = given;
  parser.check(isEndpoint(url), 'url must be an http(s) URL without credentials');
  if (given.mode === undefined) parser.problem('mode is missing');
  const mode = parser.oneOf('mode', given.mode, ['single', 'batch', 'binary'], 'single');
  if (token !== undefined) parser.check(/^[\x21-\x7E]+$/.test(String(token)), 'token must be printable ASCII');
  parser.optionalFunction('fetch', given.fetch);
  parser.done();
  const authorization: Record<string, string> = token === undefined ? {} : { authorization: `Bearer ${token}` };

  const post = (
    headers: Record<string, string>,
    body: string,
    signal: AbortSignal,
    single: boolean,
  ): Promise<Verdict> =>
    postEvents({ fetch: send, url, headers: { ...authorization, ...headers }, body, signal, single });

  async function postOne(event: CloudEvent, signal: AbortSignal): Promise<Verdict> {
    if (mode === 'binary') return post(binaryHeaders(event), JSON.stringify(event.data), signal, true);
    return post({ 'content-type': 'application/cloudevents+json' }, JSON.stringify(event), signal, true);
  }

  async function write(events: readonly UsageEvent[], signal: AbortSignal): Promise<readonly Verdict[]> {
    const forms = events.map(toCloudEvent);
    const verdicts = forms.map((form): Verdict | undefined =>
      Buffer.byteLength(JSON.stringify(form)) > MAX_EVENT_BYTES
        ? { outcome: 'reject', reason: 'the event is larger than 64 KiB' }
        : undefined,
    );
    const fitting = forms.filter((_, index) => verdicts[index] === undefined);
    if (mode === 'batch' && fitting.length > 0) {
      const headers = { 'content-type': 'application/cloudevents-batch+json' };
      const verdict = await post(headers, JSON.stringify(fitting), signal, fitting.length === 1);
      return verdicts.map((each) => each ?? verdict);
    }
    const known: Verdict[] = [];
    for (const [index, form] of forms.entries()) known.push(verdicts[index] ?? (await postOne(form, signal)));
    return known;
  }

  // One request per event: a small batch, so that a failure in the middle repeats little.
  return { name, role, limits: mode === 'batch' ? limits : { maxEvents: 1, concurrency: 4, ...limits }, write };
}

/** HTTP protocol binding §3.1.3: values are percent-encoded, so that no text can break a header. */
function binaryHeaders({ data: _data, datacontenttype, ...attributes }: CloudEvent): Record<string, string> {
  const headers: Record<string, string> = { 'content-type': datacontenttype };
  for (const [name, value] of Object.entries(attributes)) {
    // Half a surrogate pair has no encoding: it becomes U+FFFD.
    const text = Buffer.from(String(value)).toString();
    headers[`ce-${name}`] = text.replace(/[^\x21\x23\x24\x26-\x7E]/gu, (char) => encodeURIComponent(char));
  }
  return headers;
}
