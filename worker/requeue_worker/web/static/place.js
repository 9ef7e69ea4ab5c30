// Where in the view one is: the part of the address after #, a page with its query.

export function place() {
  const [path, query] = location.hash.replace(/^#\/?/, "").split("?");
  return { name: path, query: new URLSearchParams(query ?? "") };
}

// The page that is shown, from its beginning.
export const reopen = () => window.dispatchEvent(new HashChangeEvent("hashchange"));

// Query values of this page, without those that are empty.
export function go(name, values) {
  const query = new URLSearchParams(Object.entries(values).filter(([, value]) => value));
  location.hash = `#/${name}${query.size ? `?${query}` : ""}`;
}
