// Messages in one state, filtered and paged; one message; the redrive of what a filter means.

import { ask, pages } from "./api.js";
import { columnOfChoice, removeChosen } from "./chosen.js";
import { dialog, field, h, table } from "./dom.js";
import { exportLetters } from "./export.js";
import { ago, count, instant, NS, now, seconds, size } from "./format.js";
import { go, reopen } from "./place.js";

const PAGE = 50;
const LOOKS = 20;  // pages without a find before a person is asked whether to look on
const REFUSED = "$invalid";
const REFUSED_STAY = "Refused messages stay: export them, and publish them mended with requeue publish --file.";
const STATES = { pending: "Pending", "in-flight": "In flight", dead: "Dead letters" };

export function messages(main, query, { changes, again }) {
  const values = Object.fromEntries(["state", "queue", "subject", "reason", "id", "older"].map((key) => [key, query.get(key) ?? ""]));
  values.state ||= "pending";
  const list = h("div");
  const more = h("p", { class: "bar" });
  const rows = [];
  let cursors = null;
  const dead = values.state === "dead";
  const chosen = new Set();
  const all = h("button", { type: "button", onclick: () => { rows.forEach((row) => chosen.add(row)); draw(); } }, "Choose all shown");
  const remove = h("button", { type: "button", onclick: () => removeChosen(values.state, chosen) });
  const acts = h("p", { class: "bar" },
    dead && [["Redrive these …", redrive, "primary"], ["Export these …", exportLetters, null]].map(([name, act, kind]) =>
      h("button", { type: "button", class: kind, onclick: () => withFilter(values, act) }, name)),
    all, remove);
  main.replaceChildren(
    h("h1", {}, values.queue ? `${STATES[values.state]} of ${values.queue}` : STATES[values.state]),
    filters(values, again),
    changes && values.state !== "in-flight" && acts, list, more);

  async function look(current) {
    if (cursors !== null) return;
    cursors = new Map();
    await next(current);
  }

  // The next PAGE messages: instances are read one page each at a time, as they have them.
  async function next(current = () => true) {
    const request = { ...wanted(values), state: values.state, limit: PAGE };
    const target = rows.length + PAGE;
    let looks = 0;
    if (!cursors.size) take(await ask("list", request));
    while (rows.length < target && looks++ < LOOKS && open().length) {
      for (const [instance, after] of open()) take(await ask("list", { ...request, after }, instance));
      if (!current()) return;
    }
    draw();
  }

  const open = () => [...cursors].filter(([, after]) => after !== null);

  function take(answers) {
    for (const answer of answers) {
      cursors.set(answer.instance, answer.next);
      rows.push(...answer.messages.map((entry) => ({ ...entry, instance: answer.instance })));
    }
  }

  function draw() {
    const choice = changes && values.state !== "in-flight" && columnOfChoice(chosen, drawChoice);
    list.replaceChildren(table("Messages", [...columnsOf(values.state), choice].filter(Boolean), rows));
    drawChoice();
    const on = h("button", { type: "button", onclick: () => next() }, "Show more");
    more.replaceChildren(`${count(rows.length)} shown`, open().length ? on : ", no more");
  }

  function drawChoice() {
    all.disabled = chosen.size === rows.length;
    remove.disabled = chosen.size === 0;
    remove.textContent = `${dead ? "Delete" : "Cancel"} ${chosen.size ? count(chosen.size) : "chosen"} …`;
  }

  return { look, live: false };
}

function filters(values, again) {
  const input = (key, placeholder) => h("input", { name: key, value: values[key], placeholder });
  const state = h("select", { name: "state" }, Object.entries(STATES).map(([key, name]) => h("option", { value: key, selected: key === values.state }, name)));
  return h("form", {
    class: "bar",
    onsubmit: (event) => {
      event.preventDefault();
      const before = location.hash;
      go("messages", Object.fromEntries(new FormData(event.target)));
      if (location.hash === before) reopen();
    },
  }, field("State", state), field("Queue", input("queue", "all")), field("Subject", input("subject", "orders.*")),
  field("Reason", input("reason", "exhausted")), field("Id", input("id", "Requeue-Id or Nats-Msg-Id")),
  field("Older than", input("older", "10m")), h("button", {}, "Show"));
}

// A filter of the admin API.
function wanted(values) {
  const request = {};
  for (const key of ["queue", "subject", "reason", "id"]) if (values[key].trim()) request[key] = values[key].trim();
  if (values.older.trim()) request.enqueued_before_ns = Math.round(now() - seconds(values.older) * NS);
  return request;
}

function columnsOf(state) {
  const link = (row) => h("a", { class: "mono", href: `#/message?${new URLSearchParams({ id: row.id, queue: row.queue, instance: row.instance })}` }, row.id.slice(0, 8), "…", row.id.slice(-6));
  return [
    { key: "id", head: "Message", cell: link },
    { key: "queue", head: "Queue", cell: (row) => row.queue, wide: true },
    { key: "subject", head: "Subject", cell: (row) => row.subject },
    { key: "attempts", head: "Attempts", number: true, cell: (row) => count(row.attempts) },
    ...(state === "dead"
      ? [{ key: "reason", head: "Reason", cell: (row) => h("span", { class: "bad" }, row.reason ?? "") },
         { key: "when", head: "Died", number: true, cell: (row) => ago(row.died_ns) }]
      : [{ key: "when", head: "Due", number: true, cell: (row) => ago(row.due_ns) }]),
    { key: "error", head: "Last error", cell: (row) => row.last_error ?? "", wide: true },
    { key: "size", head: "Payload", number: true, wide: true, cell: (row) => size(row.payload_size) },
  ];
}

export function message(main, query) {
  const id = query.get("id") ?? "";
  main.replaceChildren(h("h1", { class: "mono" }, id), h("p", {}, "looking …"));

  async function look(current) {
    const found = [];
    const request = { id, ...(query.get("queue") ? { queue: query.get("queue") } : {}) };
    const instance = query.get("instance");
    let after = "";
    while (after !== null && !found.length) {
      const [page] = await ask("get", { ...request, after }, instance);
      if (!current()) return;
      found.push(...page.messages);
      after = page.next;
    }
    main.replaceChildren(h("h1", { class: "mono" }, id), ...(found.length ? found.flatMap((each) => detail(each, instance)) : [h("p", {}, "This message is here no more.")]));
  }

  return { look, live: false };
}

function detail(each, instance) {
  const fact = (name, value) => [h("dt", {}, name), h("dd", {}, value)];
  return [
    h("dl", { class: "facts" }, fact("State", each.state), each.reason && fact("Reason", h("span", { class: "bad" }, each.reason)),
      each.last_error && fact("Last error", each.last_error), fact("Subject", each.subject), fact("Queue", each.queue),
      fact("Instance", instance ?? ""), fact("Attempts", count(each.attempts)), fact("Taken in", instant(each.enqueued_ns)),
      each.due_ns && fact("Due", instant(each.due_ns)), each.deadline_ns && fact("Deadline", instant(each.deadline_ns)),
      each.died_ns && fact("Died", instant(each.died_ns)), each.client_id && fact("Nats-Msg-Id", each.client_id)),
    h("h2", {}, `Payload, ${size(each.payload_size)}`), h("pre", { tabindex: "0" }, payload(each.payload)),
    each.headers && [h("h2", {}, "Headers"), h("pre", { tabindex: "0" }, each.headers)],
    h("h2", {}, "Attempts that failed"),
    table("Attempts that failed", [
      { key: "number", head: "Attempt", cell: (row) => String(row.number) },
      { key: "at", head: "When", cell: (row) => instant(row.at_ns) },
      { key: "error", head: "Error", cell: (row) => row.error },
    ], each.history),
  ].flat().filter(Boolean);
}

// As text where it is text, else in hexadecimal.
function payload(base64) {
  const bytes = Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
  try {
    const text = new TextDecoder("utf-8", { fatal: true }).decode(bytes);
    if (!/[\u0000-\u0008\u000e-\u001f]/.test(text)) return text;
  } catch {
    // no text
  }
  return [...bytes.slice(0, 4096)].map((byte) => byte.toString(16).padStart(2, "0")).join(" ");
}

function withFilter(values, act) {
  let filter;
  try {
    filter = wanted(values);
  } catch (error) {
    window.alert(error.message);
    return;
  }
  act(filter);
}

// Counts first, then asks; a job of one name on every instance.
async function redrive(filter) {
  const counted = h("p", { role: "status" }, "counting …");
  const rateInput = h("input", { inputmode: "numeric", placeholder: "no limit" });
  const subject = h("input", { placeholder: "each to its own" });
  const { box, go: button } = dialog("Redrive dead letters", [
    h("p", {}, `Filter: ${Object.entries(filter).map(([key, value]) => `${key} ${value}`).join(", ") || "none, all dead letters of all queues"}`),
    counted, field("Messages a second, each instance", rateInput), field("To subject", subject),
  ], "Redrive", async () => {
    const request = { ...filter, job: `web-${crypto.getRandomValues(new Uint32Array(2)).join("-")}` };
    if (rateInput.value.trim()) request.rate = Number(rateInput.value);
    if (subject.value.trim()) request.to_subject = subject.value.trim();
    await ask("redrive", request);
    go("jobs", {});
  });
  button.disabled = true;
  const sum = async (request) => {
    let [number, bytes] = [0, 0];
    await pages("count", { ...request, state: "dead" }, (page) => {
      [number, bytes] = [number + page.messages, bytes + page.bytes];
      counted.textContent = `${count(number)} messages so far …`;
      return box.open;
    });
    return [number, bytes];
  };
  try {
    const [all, allBytes] = await sum(filter);
    const [refused, refusedBytes] = filter.queue ? [0, 0] : await sum({ ...filter, queue: REFUSED });
    const [number, bytes] = filter.queue === REFUSED ? [0, 0] : [all - refused, allBytes - refusedBytes];
    counted.textContent = `${count(number)} messages, ${size(bytes)}, become pending again and are due at once.`;
    if (all > number) counted.textContent += ` ${REFUSED_STAY}`;
    button.disabled = number === 0;
  } catch (error) {
    counted.textContent = error.message;
  }
}
