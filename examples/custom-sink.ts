/** A sink of your own, here to a message broker through the app's own producer. */
import type { Sink } from 'tollkeeper';

/** What is used of a producer, e.g. of Kafka or NATS. */
export interface Producer {
  send(topic: string, messages: readonly { key: string; value: string }[]): Promise<void>;
}

/** At least once, with stable ids: consumers dedupe by the key. What `send` throws is retried with backoff. */
export function brokerSink(producer: Producer, topic: string): Sink {
  return {
    name: `broker-${topic}`,
    limits: { maxEvents: 500 },
    async write(events) {
      await producer.send(
        topic,
        events.map((event) => ({ key: event.id, value: JSON.stringify(event) })),
      );
    },
  };
}
