// The few ways in which this page changes its document. Text only ever becomes a text node, never markup.

const SVG = "http://www.w3.org/2000/svg";

export const find = (id) => document.getElementById(id);

/** An element with a class and children; strings become text. */
export function make(tag, className = "", ...children) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  node.append(...children);
  return node;
}

/** An SVG element with attributes; `text` becomes its text. */
export function draw(tag, attributes = {}, text = "") {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  if (text) node.textContent = text;
  return node;
}

/** Sets the text if it is another, so that what is selected stays selected. */
export function put(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

export function show(node, isShown) {
  if (node.hidden === isShown) node.hidden = !isShown;
}

/** Pairs of a name and a value in a <dl>; only what changed is touched. */
export function pairs(list, entries) {
  while (list.children.length > entries.length) list.lastElementChild.remove();
  entries.forEach(([name, value, title = ""], place) => {
    const pair = list.children[place] ?? list.appendChild(make("div", "", make("dt"), make("dd")));
    put(pair.firstElementChild, name);
    put(pair.lastElementChild, value);
    if (pair.title !== title) pair.title = title;
  });
}

/** Rows of a table body: one array of texts a row, or of nodes, which are asked to be equal by `key`. */
export function rows(body, lines) {
  while (body.children.length > lines.length) body.lastElementChild.remove();
  lines.forEach((line, place) => {
    const row = body.children[place] ?? body.appendChild(make("tr"));
    while (row.children.length > line.length) row.lastElementChild.remove();
    line.forEach((cell, column) => {
      const { text, className = "", title = "", label = "", width } = cell;
      const node = row.children[column] ?? row.appendChild(make("td"));
      if (node.className !== className) node.className = className;
      if (node.title !== title) node.title = title;
      if (label && node.dataset.label !== label) node.dataset.label = label;
      if (width === undefined) return put(node, text);
      const bar = node.querySelector("i") ?? node.appendChild(make("span", "share", make("i"))).firstElementChild;
      const share = node.querySelector("b") ?? node.appendChild(make("b"));
      bar.style.width = `${100 * width}%`;
      put(share, text);
    });
  });
}
