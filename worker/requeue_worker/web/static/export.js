// Dead letters as a file of JSON lines, as `requeue dead import` reads them.

import { ask, asked } from "./api.js";
import { dialog, h } from "./dom.js";
import { count, now } from "./format.js";

export function exportLetters(filter) {
  const said = h("p", { role: "status" });
  const { box } = dialog("Export dead letters", [
    h("p", {}, "Whole, with their payloads, as lines of JSON. They stay where they are; requeue dead import reads them."), said,
  ], "Export", async () => {
    const lines = [];
    let left = 0;
    for (const { instance } of await ask("instances")) {
      let after = "";
      while (after !== null) {
        if (!box.open) return;
        const request = { ...filter, died_before_ns: Math.round(now()), after };
        const { answers: [page], text } = await asked("dead-export", request, instance);
        lines.push(...lettersOf(text));
        left += page.too_large.length;
        after = page.next;
        said.textContent = `${count(lines.length)} so far …`;
      }
    }
    if (left) throw new Error(`${count(left)} fit no message of the NATS server: raise its max_payload, and export again`);
    save(lines);
  });
}

// The objects of the first answer's `letters`, letter by letter as they stand in the text: their times are nanoseconds, which
// a double would round.
export function lettersOf(text) {
  const found = [];
  let [at, depth, first] = [text.indexOf('"letters":[') + 11, 0, 0];
  for (; depth > 0 || text[at] !== "]"; at++) {
    if (text[at] === '"') {
      do at = text.indexOf('"', at + 1); while (isEscaped(text, at));
    } else if (text[at] === "{") {
      if (depth++ === 0) first = at;
    } else if (text[at] === "}" && --depth === 0) {
      found.push(text.slice(first, at + 1));
    }
  }
  return found;
}

function isEscaped(text, at) {
  let slashes = 0;
  while (text[at - 1 - slashes] === "\\") slashes++;
  return slashes % 2 === 1;
}

function save(lines) {
  const file = new Blob(lines.map((line) => `${line}\n`), { type: "application/x-ndjson" });
  const link = h("a", { href: URL.createObjectURL(file), download: "dead-letters.jsonl" });
  link.click();
  URL.revokeObjectURL(link.href);
}
