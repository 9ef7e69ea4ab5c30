// The purge of a queue: counted first, and confirmed by its name.

import { pages } from "./api.js";
import { dialog, field, h } from "./dom.js";
import { count } from "./format.js";

export async function purge(queue, again) {
  const counted = h("p", { role: "status" }, "counting …");
  const name = h("input", { autocomplete: "off", spellcheck: "false", oninput: () => allow() });
  let meant = 0;
  const request = { queue, by: "web view" };
  const { box, go } = dialog(`Purge ${queue}`, [
    counted,
    h("p", {}, "They are gone for good, without a dead letter. What comes in from now on stays, and so do dead letters."),
    field(`Type ${queue} to confirm`, name),
  ], "Purge", async () => {
    let done = 0;
    await pages("purge", { ...request, dry_run: false }, (page) => {
      done += page.changed;
      counted.textContent = `${count(done)} of ${count(meant)} removed …`;
    });
    await again();
  });
  const allow = () => { go.disabled = meant === 0 || name.value !== queue; };
  allow();
  let held = 0;
  try {
    await pages("purge", { ...request, dry_run: true }, (page) => {
      [meant, held] = [meant + page.changed, held + page.in_flight];
      counted.textContent = `${count(meant)} messages so far …`;
      return box.open;
    });
    counted.textContent = `${count(meant)} messages are removed.${held ? ` ${count(held)} are with their handlers, and stay.` : ""}`;
    allow();
  } catch (error) {
    counted.textContent = error.message;
  }
}
