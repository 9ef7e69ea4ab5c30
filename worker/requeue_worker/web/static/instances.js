// Who is there, and how is it?

import { ask } from "./api.js";
import { h, redraw, table } from "./dom.js";
import { count, NS, size, span } from "./format.js";

export function instances(main) {
  const list = h("div");
  main.replaceChildren(h("h1", {}, "Instances"), list);
  async function look(current) {
    const rows = await ask("instances");
    if (!current()) return;
    rows.sort((a, b) => (a.instance < b.instance ? -1 : 1));
    redraw(list, table("Instances", COLUMNS, rows));
  }
  return { look, live: true };
}

const number = (key, head) => ({ key, head, number: true, cell: (row) => count(row[key]) });
const COLUMNS = [
  { key: "instance", head: "Instance", cell: (row) => row.instance },
  { key: "state", head: "State", cell: (row) => h("span", { class: row.ready ? "good" : "bad" }, row.state) },
  { key: "up", head: "Up", number: true, cell: (row) => span((row.time_ns - row.started_ns) / NS) },
  number("queues", "Queues"), number("pending", "Pending"), number("in_flight", "In flight"), number("dead", "Dead"),
  { key: "size", head: "Size", number: true, cell: (row) => size(row.pending_bytes + row.dead_bytes) },
  { key: "free", head: "Disk free", number: true, cell: (row) => h("span", { class: row.disk_full ? "bad" : null }, size(row.disk_free_bytes)) },
  { key: "fleet", head: "Fleet", wide: true, cell: (row) => row.fleet },
  { key: "version", head: "Version", wide: true, cell: (row) => row.version },
];
