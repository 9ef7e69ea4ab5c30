// The admin API through the worker that serves this page: answers of all instances, pages followed to their end.

let silent = 0;
export const silentInstances = () => silent;

export async function about() {
  return (await call("api/about", {})).json();
}

async function call(path, options) {
  let response;
  try {
    response = await fetch(path, { cache: "no-store", ...options });
  } catch {
    throw new Error("the worker that serves this page does not answer");
  }
  if (!response.ok) {
    const said = await response.json().catch(() => ({}));
    throw new Error(said.error ?? `${response.status} ${response.statusText}`);
  }
  return response;
}

// One answer of each instance, or of the one that is named. An instance that refuses is an error.
export async function ask(endpoint, request = {}, instance = null) {
  return (await asked(endpoint, request, instance)).answers;
}

// The same, with the text of it: numbers in it are whole, where a double rounds them.
export async function asked(endpoint, request = {}, instance = null) {
  const query = instance === null ? "" : `?instance=${encodeURIComponent(instance)}`;
  const response = await call(`api/${endpoint}${query}`, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(request),
  });
  const text = await response.text();
  const { answers, silent: missing } = JSON.parse(text);
  silent = missing;
  const refused = answers.find((answer) => answer.error && answer.code);
  if (refused) throw new Error(`${refused.instance}: ${refused.error}`);
  if (!answers.length) throw new Error(`${instance ?? "no worker"} does not answer`);
  return { answers, text };
}

// All pages of all instances, the first ones asked for at once; `take(page)` may return false to end an instance's.
export async function pages(endpoint, request, take) {
  const firsts = await ask(endpoint, request);
  await Promise.all(firsts.map(async (first) => {
    let page = first;
    while (take(page) !== false && page.next !== null) {
      [page] = await ask(endpoint, { ...request, after: page.next }, first.instance);
    }
  }));
}
