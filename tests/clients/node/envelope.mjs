// The envelope as a Node program builds it, with the official runtime. What flatc generates for the schema is these
// same calls in TypeScript, which Node 20 does not run as it is; slot numbers and types are the schema's.

const SLOTS = 7;
const RETRIES = 0;
const TTL = 1;
const DELAY = 2;
const BACKOFF = 3;
const QUEUE = 4;
const SUBJECT = 5;
const PAYLOAD = 6;

export function buildEnvelope(builder, envelope) {
  const queue = envelope.queue ? builder.createString(envelope.queue) : 0;
  const subject = builder.createString(envelope.subject);
  const payload = builder.createByteVector(Buffer.from(envelope.payload ?? "", "base64"));
  builder.startObject(SLOTS);
  builder.addFieldInt64(RETRIES, BigInt(envelope.retries ?? 0), 0n);
  builder.addFieldInt64(TTL, BigInt(envelope.ttl_ns ?? 0), 0n);
  builder.addFieldInt64(DELAY, BigInt(envelope.delay_ns ?? 0), 0n);
  builder.addFieldInt8(BACKOFF, envelope.backoff ?? 0, 0);
  builder.addFieldOffset(QUEUE, queue, 0);
  builder.addFieldOffset(SUBJECT, subject, 0);
  builder.addFieldOffset(PAYLOAD, payload, 0);
  builder.finish(builder.endObject());
  return builder.asUint8Array();
}
