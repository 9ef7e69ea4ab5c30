// Elements from values. Text goes in as text: nothing here makes HTML of a string.

export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "value") element.value = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

// columns: {key, head, cell(row) -> text or node, sort(row), number, wide}; the first one heads its row.
export function table(caption, columns, rows, { order, onsort } = {}) {
  const head = columns.map((column) => {
    const sorted = order?.key === column.key ? (order.down ? "descending" : "ascending") : null;
    const mark = sorted ? (order.down ? " ▾" : " ▴") : "";
    const label = onsort && column.sort
      ? h("button", { type: "button", onclick: () => onsort(column.key), "data-focus": `sort-${column.key}` }, column.head + mark)
      : column.head;
    return h("th", { scope: "col", "aria-sort": sorted, class: classes(column) }, label);
  });
  const body = rows.map((row) => h("tr", {}, columns.map((column, index) =>
    h(index ? "td" : "th", { class: classes(column), scope: index ? null : "row" }, column.cell(row)))));
  return h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": caption },
    h("table", {}, h("thead", {}, h("tr", {}, head)), h("tbody", {}, body)));
}

function classes(column) {
  return [column.number && "number", column.wide && "wide"].filter(Boolean).join(" ") || null;
}

export function tiles(facts) {
  return h("dl", { class: "tiles" }, facts.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))));
}

export function field(name, input) {
  return h("label", {}, name, input);
}

// A dialog with a form; `submit` gets a way to show what went wrong and returns whether to close.
export function dialog(title, content, action, submit) {
  const wrong = h("p", { class: "bad", role: "alert" });
  const go = h("button", { class: "primary" }, action);
  const box = h("dialog", { "aria-label": title, onclose: () => box.remove() },
    h("form", {
      onsubmit: async (event) => {
        event.preventDefault();
        go.disabled = true;
        wrong.textContent = "";
        try {
          await submit();
          box.close();
        } catch (error) {
          wrong.textContent = error.message;
        } finally {
          go.disabled = false;
        }
      },
    }, h("h1", {}, title), content, wrong,
    h("div", { class: "bar" }, h("button", { type: "button", onclick: () => box.close() }, "Cancel"), go)));
  document.body.append(box);
  box.showModal();
  return { box, go };
}

// What a page draws again keeps the focus where it was.
export function redraw(element, ...children) {
  const focus = element.contains(document.activeElement) ? document.activeElement.dataset.focus : null;
  element.replaceChildren(...children);
  if (focus) element.querySelector(`[data-focus="${CSS.escape(focus)}"]`)?.focus();
}
