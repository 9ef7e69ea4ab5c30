// Speaks to nats-requeue with a NATS library for Node: `node driver.mjs PACKAGES @nats-io/transport-node|nats SERVER`,
// where PACKAGES is the directory that holds `node_modules`, which is outside the tree.
//
// Takes commands as lines of JSON on standard input and answers each with one line; messages that it handles come
// as lines of their own. The same commands and answers as the driver for Go (../go/main.go), which describes them.

import { createRequire } from "node:module";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { buildEnvelope } from "./envelope.mjs";

const [packages, library, server] = process.argv.slice(2);
const require = createRequire(join(packages, "driver.js"));
const { connect, headers: newHeaders } = require(library);
const { Builder } = require("flatbuffers");
const nc = await connect({ servers: server });

function say(line) {
  process.stdout.write(`${JSON.stringify(line)}\n`);
}

function toMessage(msg) {
  const headers = {};
  for (const [name, values] of msg.headers ?? []) headers[name] = values;
  return { subject: msg.subject, payload: Buffer.from(msg.data).toString("base64"), headers };
}

function toHeaders(values) {
  const headers = newHeaders();
  for (const [name, each] of Object.entries(values)) {
    for (const value of [each].flat()) headers.append(name, value);
  }
  return headers;
}

// Version 3 of the library has names (of the error or its cause), version 2 has codes.
const KINDS = { NoResponders: "no responders", 503: "no responders", TimeoutError: "timeout", TIMEOUT: "timeout" };

function toFailure(error) {
  const chain = [error, error.cause].filter(Boolean);
  const kind = chain.map((each) => KINDS[each.code] ?? KINDS[each.name]).find(Boolean);
  const name = chain.map((each) => (each.code ? `${each.name} ${each.code}` : each.name)).join(" < ");
  return { kind: kind ?? "other", name, text: chain.map((each) => each.message).join(": ") };
}

async function request({ id, subject, payload, headers, timeout_ms: timeout, one_by_one: noMux }) {
  const options = { timeout, noMux: noMux ?? false };
  if (headers) options.headers = toHeaders(headers);
  try {
    const reply = await nc.request(subject, Buffer.from(payload, "base64"), options);
    say({ id, reply: toMessage(reply) });
  } catch (error) {
    say({ id, error: toFailure(error) });
  }
}

// A message of core NATS has `respond` and no verbs of JetStream here: those are sent as bytes.
const VERBS = { ack: "+ACK", nak: "-NAK", working: "+WPI", term: "+TERM" };

function give(msg, { verb, payload, headers }) {
  if (verb !== "respond") {
    if (typeof msg[verb] === "function") throw new Error(`this library has msg.${verb}() by now: use it here`);
    throw new Error(`a message has no ${verb}; respond with ${VERBS[verb]}`);
  }
  const data = Buffer.from(payload ?? "", "base64");
  msg.respond(data, headers ? { headers: toHeaders(headers) } : undefined);
}

async function handle({ id, subject, answers }) {
  nc.subscribe(subject, {
    callback: (_, msg) => {
      const answer = answers.length > 1 ? answers.shift() : answers[0];
      const told = { event: "message", message: toMessage(msg) };
      try {
        give(msg, answer);
      } catch (error) {
        told.error = toFailure(error);
      }
      say(told);
    },
  });
  await nc.flush();
  say({ id });
}

const operations = {
  envelope: ({ id, envelope }) => say({ id, bytes: Buffer.from(buildEnvelope(new Builder(256), envelope)).toString("base64") }),
  request,
  handle,
};

for await (const line of createInterface({ input: process.stdin })) {
  const command = JSON.parse(line);
  operations[command.op](command);
}
await nc.close();
