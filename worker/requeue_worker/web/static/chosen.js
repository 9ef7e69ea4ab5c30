// What is done to the messages that were chosen in a list: dead letters deleted, pending messages cancelled.

import { ask, pages } from "./api.js";
import { dialog, h } from "./dom.js";
import { count } from "./format.js";
import { reopen } from "./place.js";

const KEYS = 40;  // in one request: the server takes 16 KiB

export const columnOfChoice = (chosen, changed) => ({
  key: "choose", head: "Choose",
  cell: (row) => h("input", {
    type: "checkbox", checked: chosen.has(row), "aria-label": `Choose ${row.id}`,
    onchange: (event) => { event.target.checked ? chosen.add(row) : chosen.delete(row); changed(); },
  }),
});

export function removeChosen(state, chosen) {
  const rows = [...chosen];
  const dead = state === "dead";
  const [title, verb] = dead ? ["dead letters", "Delete"] : ["messages", "Cancel them"];
  const done = h("p", { role: "status" });
  dialog(`${dead ? "Delete" : "Cancel"} ${count(rows.length)} ${title}`, [
    h("p", {}, dead
      ? "They are gone for good. Export them first, if somebody may want them back."
      : "They are gone for good, without a dead letter. Those that are with a handler by now stay."),
    done,
  ], verb, async () => {
    const tell = (number) => { done.textContent = `${count(number)} of ${count(rows.length)} …`; };
    await (dead ? deleteLetters(rows, tell) : cancel(rows, tell));
    reopen();
  });
}

async function deleteLetters(rows, tell) {
  let number = 0;
  for (const [instance, own] of by(rows, (row) => row.instance)) {
    for (let first = 0; first < own.length; first += KEYS) {
      const [answer] = await ask("dead-delete", { keys: own.slice(first, first + KEYS).map((row) => row.key) }, instance);
      tell(number += answer.deleted);
    }
  }
}

// One at a time: the index of the workers knows those with a Nats-Msg-Id, for others their queue is walked.
async function cancel(rows, tell) {
  let number = 0;
  for (const row of rows) {
    const request = { queue: row.queue, id: row.id, ids: [row.client_id ?? row.id], dry_run: false, by: "web view" };
    let after = "";
    while (after !== null) {
      const [page] = await ask("purge", { ...request, after }, row.instance);
      tell(number += page.changed);
      after = page.changed ? null : page.next;
    }
  }
}

function by(rows, keyOf) {
  const groups = new Map();
  for (const row of rows) groups.set(keyOf(row), [...(groups.get(keyOf(row)) ?? []), row]);
  return groups;
}
