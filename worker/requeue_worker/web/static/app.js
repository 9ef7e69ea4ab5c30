// Which page is shown, and when it looks again.

import { about, silentInstances } from "./api.js";
import { instances } from "./instances.js";
import { jobs } from "./jobs.js";
import { message, messages } from "./messages.js";
import { place } from "./place.js";
import { queues } from "./queues.js";

const EVERY_MS = 2000;
const PAGES = { "": queues, messages, message, instances, jobs };
const main = document.getElementById("main");
const trouble = document.getElementById("trouble");
const live = document.getElementById("live");
let page = null;
let said = { changes: false };
let turn = 0;

async function look() {
  const mine = ++turn;
  try {
    await page.look(() => mine === turn);
    show(silentInstances() ? `${silentInstances()} instance(s) did not answer: what is shown lacks theirs` : "");
  } catch (error) {
    if (mine === turn) show(error.message);
  }
  main.dataset.looks = Number(main.dataset.looks ?? 0) + 1;
}

function show(text) {
  trouble.hidden = !text;
  trouble.textContent = text;
}

async function open() {
  const { name, query } = place();
  page?.close?.();
  page = (PAGES[name] ?? queues)(main, query, { ...said, again: look });
  for (const link of document.querySelectorAll("nav a")) {
    const here = link.getAttribute("href") === location.hash || (link.getAttribute("href") === "#/" && name === "");
    here ? link.setAttribute("aria-current", "page") : link.removeAttribute("aria-current");
  }
  await look();
}

async function forever() {
  for (;;) {
    await new Promise((done) => setTimeout(done, EVERY_MS));
    const busy = document.querySelector("dialog[open]") !== null;
    if (live.getAttribute("aria-pressed") === "true" && !document.hidden && !busy && page.live) await look();
  }
}

live.addEventListener("click", () => {
  const pressed = live.getAttribute("aria-pressed") === "true";
  live.setAttribute("aria-pressed", String(!pressed));
  live.textContent = pressed ? "Stopped" : "Live";
});
window.addEventListener("hashchange", open);
try {
  said = await about();
} catch (error) {
  show(error.message);
}
await open();
forever();
