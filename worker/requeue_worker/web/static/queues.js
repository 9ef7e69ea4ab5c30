// All queues: sums over the instances, rates since the look before, sorted, filtered and paged here.

import { ask, pages } from "./api.js";
import { purge } from "./purge.js";
import { dialog, field, h, redraw, table, tiles } from "./dom.js";
import { ago, count, NS, now, pauseEnd, quantile, rate, seconds, size, span } from "./format.js";

const PAGE = 50;
const COUNTED = ["accepted", "replays", "settled", "retried", "dead"];
const SUMMED = ["pending", "pending_bytes", "in_flight", "dead", "dead_bytes"];
const choose = { filter: "", order: { key: "name", down: false }, page: 0 };

export function queues(main, _, { changes, again }) {
  let rows = new Map();
  let before = null;
  const summary = h("div");
  const list = h("div");
  const filter = h("input", {
    type: "search", value: choose.filter, placeholder: "part of a name",
    oninput: () => { choose.filter = filter.value; choose.page = 0; draw(); },
  });
  main.replaceChildren(h("h1", {}, "Queues"), summary, h("div", { class: "bar" }, field("Filter", filter)), list);

  async function look(current) {
    const found = new Map();
    let totals = null;
    const [instances] = await Promise.all([
      ask("instances"),
      pages("queues", {}, (page) => page.queues.forEach((entry) => add(found, entry))),
      totalsOf().then((all) => { totals = all; }),
    ]);
    if (!current()) return;
    const rates = before ? between(before, totals) : null;
    before = totals;
    for (const row of found.values()) Object.assign(row, { rates: rates?.queues.get(row.name) ?? null });
    rows = found;
    redraw(summary, overview(instances, rates, totals));
    draw();
  }

  function draw() {
    const wanted = choose.filter.toLowerCase();
    const columns = columnsOf(changes, again);
    const by = columns.find((column) => column.key === choose.order.key).sort;
    const shown = [...rows.values()].filter((row) => row.name.toLowerCase().includes(wanted));
    shown.sort((a, b) => compare(by(a), by(b)) || compare(a.name, b.name));
    if (choose.order.down) shown.reverse();
    const last = Math.max(Math.ceil(shown.length / PAGE) - 1, 0);
    choose.page = Math.min(choose.page, last);
    const part = shown.slice(choose.page * PAGE, (choose.page + 1) * PAGE);
    const turn = (by, name, off) => h("button", {
      type: "button", disabled: off, "data-focus": name, onclick: () => { choose.page += by; draw(); },
    }, name);
    redraw(list,
      table("Queues", columns, part, {
        order: choose.order,
        onsort: (key) => {
          choose.order = { key, down: choose.order.key === key ? !choose.order.down : key !== "name" };
          draw();
        },
      }),
      h("p", { class: "bar" }, `${count(shown.length)} queues`,
        shown.length > PAGE && [turn(-1, "Previous", choose.page === 0), `page ${choose.page + 1} of ${last + 1}`,
          turn(1, "Next", choose.page === last)]));
  }

  return { look, live: true };
}

const compare = (a, b) => (a < b ? -1 : a > b ? 1 : 0);

function add(found, entry) {
  const known = found.get(entry.name);
  if (!known) {
    found.set(entry.name, entry);
    return;
  }
  for (const key of SUMMED) known[key] += entry[key];
  known.next_due_ns = Math.min(known.next_due_ns ?? Infinity, entry.next_due_ns ?? Infinity);
  if (known.next_due_ns === Infinity) known.next_due_ns = null;
  known.paused_until_ns = Math.max(known.paused_until_ns ?? 0, entry.paused_until_ns ?? 0) || null;
}

// What happened since their starts, by instance and queue: a rate is a difference within one instance.
async function totalsOf() {
  const instances = new Map();
  await pages("stats", {}, (page) => {
    const known = instances.get(page.instance) ?? { page, queues: new Map() };
    instances.set(page.instance, known);
    for (const queue of page.queues) {
      const sum = (by) => Object.values(by).reduce((all, each) => all + each, 0);
      known.queues.set(queue.name, {
        accepted: queue.accepted ?? 0,  // a worker of an earlier release does not tell
        replays: queue.replays, settled: queue.settled, retried: queue.retried, dead: sum(queue.dead),
      });
    }
  });
  return instances;
}

function between(before, after) {
  const all = { queues: new Map(), bounds: [], late: [] };
  for (const [instance, is] of after) {
    const was = before.get(instance);
    if (!was || was.page.started_ns !== is.page.started_ns) continue;
    const passed = (is.page.time_ns - was.page.time_ns) / NS;
    if (passed <= 0) continue;
    all.bounds = is.page.lateness.bounds_s;
    is.page.lateness.counts.forEach((each, index) => {
      all.late[index] = (all.late[index] ?? 0) + each - was.page.lateness.counts[index];
    });
    for (const [name, queue] of is.queues) {
      const old = was.queues.get(name);
      const sums = all.queues.get(name) ?? Object.fromEntries(COUNTED.map((key) => [key, 0]));
      all.queues.set(name, sums);
      for (const key of COUNTED) sums[key] += Math.max(queue[key] - (old?.[key] ?? 0), 0) / passed;
    }
  }
  return all;
}

function overview(instances, rates, totals) {
  const sum = (key) => instances.reduce((all, each) => all + each[key], 0);
  const queues = rates ? [...rates.queues.values()] : null;
  const perSecond = (key) => (queues ? rate(queues.reduce((all, each) => all + each[key], 0)) : "–");
  let [bounds, late] = [rates?.bounds ?? [], rates?.late ?? []];
  if (!late.some(Boolean)) {  // nothing was sent just now: since the start
    late = [];
    for (const { page } of totals.values()) {
      bounds = page.lateness.bounds_s;
      page.lateness.counts.forEach((each, index) => { late[index] = (late[index] ?? 0) + each; });
    }
  }
  const ready = instances.filter((each) => each.ready).length;
  return tiles([
    ["Instances ready", `${ready} of ${instances.length}`],
    ["Pending", count(sum("pending"))],
    ["In flight", count(sum("in_flight"))],
    ["Dead", count(sum("dead"))],
    ["In / s", perSecond("accepted")],
    ["Replays / s", perSecond("replays")],
    ["Late, half of them", quantile(bounds, late, 0.5)],
    ["Late, 99 of 100", quantile(bounds, late, 0.99)],
  ]);
}

function due(row) {
  if (!row.next_due_ns) return row.pending > row.in_flight ? "…" : "–";
  const late = (now() - row.next_due_ns) / NS;
  return late > 0.5 ? h("span", { class: "late" }, `${span(late)} late`) : ago(row.next_due_ns);
}

function columnsOf(changes, again) {
  const number = (key, head, wide) => ({ key, head, number: true, wide, sort: (row) => row[key], cell: (row) => count(row[key]) });
  const perSecond = (key, head) => ({
    key: `${key}-rate`, head, number: true, wide: true, sort: (row) => row.rates?.[key] ?? 0, cell: (row) => rate(row.rates?.[key]),
  });
  const link = (row, state, text) => h("a", { href: `#/messages?${new URLSearchParams({ queue: row.name, state })}` }, text);
  return [
    { key: "name", head: "Queue", sort: (row) => row.name, cell: (row) => link(row, "pending", row.name) },
    number("pending", "Pending"),
    number("in_flight", "In flight"),
    { key: "dead", head: "Dead", number: true, sort: (row) => row.dead, cell: (row) => (row.dead ? link(row, "dead", count(row.dead)) : "0") },
    { key: "due", head: "Next due", number: true, sort: (row) => row.next_due_ns ?? Infinity, cell: due },
    perSecond("accepted", "In/s"), perSecond("replays", "Replays/s"), perSecond("settled", "Settled/s"), perSecond("retried", "Retried/s"), perSecond("dead", "Dead/s"),
    { key: "size", head: "Size", number: true, wide: true, sort: (row) => row.pending_bytes + row.dead_bytes,
      cell: (row) => size(row.pending_bytes + row.dead_bytes) },
    { key: "paused", head: "Paused", sort: (row) => row.paused_until_ns ?? 0, cell: (row) => paused(row, changes, again) },
  ];
}

function paused(row, changes, again) {
  const said = row.paused_until_ns ? h("span", { class: "late" }, pauseEnd(row.paused_until_ns)) : null;
  if (!changes) return said ?? "";
  const verb = row.paused_until_ns ? "Resume" : "Pause";
  const act = () => (row.paused_until_ns ? resume(row, again) : pause(row, again));
  return h("span", {}, said, said && " ",
    h("button", { type: "button", "aria-label": `${verb} ${row.name}`, "data-focus": `pause-${row.name}`, onclick: act }, verb), " ",
    row.pending > 0 && h("button", { type: "button", "aria-label": `Purge ${row.name}`, "data-focus": `purge-${row.name}`, onclick: () => purge(row.name, again) }, "Purge …"));
}

function pause(row, again) {
  const time = h("input", { placeholder: "until resumed", "aria-describedby": "pause-hint" });
  dialog(`Pause ${row.name}`, [
    h("p", { id: "pause-hint" }, "Nothing of it is sent meanwhile, by no worker. Messages still come in."),
    field("For (30s, 10m, 2h, 1d)", time),
  ], "Pause", async () => {
    const request = { queue: row.name, by: "web view" };
    if (time.value.trim()) request.for_ns = Math.round(seconds(time.value) * NS);
    await ask("pause", request);
    await again();
  });
}

function resume(row, again) {
  dialog(`Resume ${row.name}`, h("p", {}, `${count(row.pending)} messages may go out from now on.`), "Resume", async () => {
    await ask("resume", { queue: row.name, by: "web view" });
    await again();
  });
}
