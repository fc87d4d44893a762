import type { Quantity } from '../request/usage-record.js';
import type { EventCodec } from './event-log.js';
import type { UsageEntry } from './usage-entry.js';
import type { UsageEvent } from './usage-event.js';

/** Every event of `meter()` counts one request, whatever the handler reports. */
const ONE_REQUEST = '"requests":{"value":1,"basis":"measured"}';

/** Writes usage events as JSON. It runs once for a batch, after the requests' own ticks. */
export class UsageCodec implements EventCodec<UsageEntry> {
  #second = Number.NaN;
  #secondText = '';

  id(entry: UsageEntry): string {
    return entry.id;
  }

  intent(entry: UsageEntry): string {
    return `{"id":"${entry.id}",${this.#head(entry)}${this.#usage(entry)}}`;
  }

  checkpoint(entry: UsageEntry): string {
    return `{"id":"${entry.id}"${this.#usage(entry)}}`;
  }

  final(entry: UsageEntry, seq: number, source: string): string {
    const { route, status, durationMs, corrects, reason } = entry;
    let text = `{"id":"${entry.id}","seq":${seq},"source":${JSON.stringify(source)},${this.#head(entry)}`;
    if (route !== undefined) text += `,"route":${JSON.stringify(route)}`;
    if (status !== undefined) text += `,"status":${status}`;
    text += `,"outcome":"${entry.outcome}","billable":${entry.billable}`;
    if (durationMs !== undefined) text += `,"durationMs":${durationMs}`;
    text += this.#usage(entry);
    if (corrects !== undefined) text += `,"corrects":"${corrects}"`;
    if (reason !== undefined) text += `,"reason":${JSON.stringify(reason)}`;
    return `${text}}`;
  }

  /** Status and duration stay absent: nobody knows them. */
  orphan(intent: string, checkpoint: string | undefined, seq: number, source: string): string {
    const { id, quantities, dimensions, ...head } = JSON.parse(intent) as Omit<UsageEvent, 'seq' | 'source'>;
    const used = checkpoint === undefined ? { quantities, dimensions } : (JSON.parse(checkpoint) as UsageEvent);
    return JSON.stringify({
      id,
      seq,
      source,
      ...head,
      outcome: 'unknown',
      billable: false,
      quantities: used.quantities,
      dimensions: used.dimensions,
    });
  }

  #head(entry: UsageEntry): string {
    if (entry.head !== undefined) return entry.head;
    const { resource, claims, requestId, method } = entry;
    let head = `"type":${entry.type},"time":"${this.#time(entry.timeMs)}"${entry.who}`;
    if (resource !== undefined) head += `,"resource":${JSON.stringify(resource)}`;
    if (claims !== undefined) head += `,"claims":${claims}`;
    if (requestId !== undefined) head += `,"requestId":${JSON.stringify(requestId)}`;
    if (method !== undefined) head += `,"method":${JSON.stringify(method)}`;
    entry.head = head;
    return head;
  }

  #usage({ counted, quantities, dimensions }: UsageEntry): string {
    let text = counted ? ONE_REQUEST : '';
    if (quantities !== undefined) {
      for (const name in quantities) {
        if (counted && name === 'requests') continue;
        const { value, basis } = quantities[name] as Quantity;
        // Names are plain: nothing in them needs an escape.
        text += `${text === '' ? '' : ','}"${name}":{"value":${value},"basis":"${basis}"}`;
      }
    }
    return `,"quantities":{${text}},"dimensions":${dimensions === undefined ? '{}' : JSON.stringify(dimensions)}`;
  }

  /** RFC 3339 with milliseconds. The text of a second is kept: most events of a batch share it. */
  #time(ms: number): string {
    const whole = Math.floor(ms);
    const second = Math.floor(whole / 1000);
    if (second !== this.#second) {
      this.#second = second;
      this.#secondText = new Date(second * 1000).toISOString().slice(0, -4);
    }
    return `${this.#secondText}${String(whole - second * 1000).padStart(3, '0')}Z`;
  }
}
