// Redrives that run, and those that ended lately.

import { ask } from "./api.js";
import { dialog, h, redraw, table } from "./dom.js";
import { ago, count } from "./format.js";

export function jobs(main, _, { changes, again }) {
  const list = h("div");
  main.replaceChildren(h("h1", {}, "Redrives"), list);
  async function look(current) {
    const answers = await ask("jobs");
    if (!current()) return;
    const rows = answers.flatMap((answer) => answer.jobs.map((job) => ({ ...job, instance: answer.instance })));
    rows.sort((a, b) => b.started_ns - a.started_ns);
    redraw(list, rows.length ? table("Redrives", columnsOf(changes, again), rows) : h("p", {}, "None since the workers started."));
  }
  return { look, live: true };
}

function columnsOf(changes, again) {
  return [
    { key: "job", head: "Job", cell: (row) => row.job },
    { key: "instance", head: "Instance", cell: (row) => row.instance },
    { key: "state", head: "State", cell: (row) => h("span", { class: row.state === "failed" ? "bad" : null }, row.error ? `${row.state}: ${row.error}` : row.state) },
    { key: "redriven", head: "Redriven", number: true, cell: (row) => count(row.redriven) },
    { key: "skipped", head: "Skipped", number: true, cell: (row) => count(row.skipped) },
    { key: "started", head: "Started", number: true, wide: true, cell: (row) => ago(row.started_ns) },
    { key: "request", head: "Asked for", wide: true, cell: (row) => Object.entries(row.request).filter(([key]) => key !== "job").map(([key, value]) => `${key} ${value}`).join(", ") },
    { key: "end", head: "", cell: (row) => (changes && row.state === "running" ? end(row, again) : "") },
  ];
}

function end(row, again) {
  const confirm = () => dialog(`Cancel ${row.job}`, h("p", {}, "On every instance. What was redriven stays so, the rest stays dead."), "End the job", async () => {
    await ask("cancel-job", { job: row.job });
    await again();
  });
  return h("button", { type: "button", "data-focus": `end-${row.job}`, onclick: confirm }, "Cancel");
}
