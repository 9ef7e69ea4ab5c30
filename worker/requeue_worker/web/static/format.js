// Numbers as people read them. Times are Unix nanoseconds; a double holds them to a fraction of a microsecond.

export const NS = 1e9;
const UNTIL_RESUMED = 2 ** 63;

export const count = (number) => Math.round(number).toLocaleString("en");

export function rate(perSecond) {
  if (perSecond === null || perSecond === undefined) return "–";
  return perSecond >= 100 || perSecond === 0 ? count(perSecond) : perSecond.toFixed(1);
}

export function size(bytes) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (bytes >= 1024 && unit < units.length - 1) [bytes, unit] = [bytes / 1024, unit + 1];
  return `${unit && bytes < 100 ? bytes.toFixed(1) : Math.round(bytes)} ${units[unit]}`;
}

export function span(seconds) {
  if (seconds < 1) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 60) return `${seconds < 10 ? seconds.toFixed(1) : Math.round(seconds)} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min`;
  if (seconds < 86400) return `${Math.floor(seconds / 3600)} h ${Math.floor((seconds % 3600) / 60)} min`;
  return `${Math.floor(seconds / 86400)} d ${Math.floor((seconds % 86400) / 3600)} h`;
}

export const now = () => Date.now() * 1e6;

export function ago(ns) {
  const seconds = (now() - ns) / NS;
  return seconds >= 0 ? `${span(seconds)} ago` : `in ${span(-seconds)}`;
}

export function instant(ns) {
  return ns ? new Date(ns / 1e6).toISOString().replace("T", " ").replace("Z", " UTC") : "–";
}

export const pauseEnd = (ns) => (ns >= UNTIL_RESUMED - 4096 ? "until resumed" : `ends ${ago(ns)}`);

// The bound below which this share of the observations lies: a histogram's answer.
export function quantile(bounds, counts, share) {
  const all = counts.reduce((sum, each) => sum + each, 0);
  if (!all) return "–";
  let sum = 0;
  for (const [index, each] of counts.entries()) {
    sum += each;
    if (sum >= share * all) return index < bounds.length ? `≤ ${span(bounds[index])}` : `> ${span(bounds.at(-1))}`;
  }
  return "–";
}

export function seconds(text) {
  const parts = text.trim().match(/^(\d+(?:\.\d+)?)\s*(s|m|h|d)$/);
  if (!parts) throw new Error(`"${text}" is no duration; write it like 30s, 10m, 2h or 1d`);
  return Number(parts[1]) * { s: 1, m: 60, h: 3600, d: 86400 }[parts[2]];
}
