// The panel at the side: how to read the page and what became of the network, or all about one card.

import { element, fill, pieces } from "./colours.js";
import { count, tabular } from "./network.js";

const html = (name, text = "", style = "") => {
  const made = document.createElement(name);
  made.textContent = text;
  if (style) made.className = style;
  return made;
};

const heading = (text) => html("h2", text);

function table(head, rows) {
  const made = html("table");
  const line = (cells, kind) => {
    const row = html("tr");
    row.append(...cells.map((cell) => (cell instanceof Node ? wrap(kind, cell) : html(kind, cell))));
    return row;
  };
  if (head) made.append(line(head, "th"));
  made.append(...rows.map((row) => line(row, "td")));
  return made;
}

function wrap(kind, node) {
  const cell = html(kind);
  cell.append(node);
  return cell;
}

function swatch(part) {
  const made = element("svg", { class: "swatch", width: 22, height: 12, "aria-hidden": true });
  made.append(element("rect", { width: 22, height: 12, fill: fill(part) }));
  return made;
}

function partName(part) {
  const made = html("span");
  made.append(swatch(part), ` part ${part}`);
  return made;
}

/** A bar as the cards have them, for the legend. */
function example(network, what, runs) {
  const made = element("svg", { class: "example", width: 74, height: 16, "aria-hidden": true });
  const units = runs.reduce((sum, [, size]) => sum + size, 0);
  made.append(
    ...pieces(network, { what, runs, units }, 70, 14).map(([part, x, y, width, height]) =>
      element("rect", {
        x: x + 1,
        y: y + 1,
        width,
        height,
        fill: fill(part),
        class: what === "duplicated" ? "own" : "",
      }),
    ),
  );
  return made;
}

function legend(network) {
  const even = Array.from({ length: Math.min(network.k, 8) }, (_, part) => [part, 1]);
  const kinds = [
    ["divided", even, "each unit belongs to one part"],
    ["duplicated", even, "each part mixes its own units (a norm, a softmax)"],
    ["meeting", [[-1, 1]], "Σ the parts' contributions add up here"],
    ["replicated", [[-1, 1]], "= not divided: a copy in every part"],
    ["blocked", [[-1, 1]], "! not divided: an operator without a rule"],
    ["shared", [[-1, 1]], "the same in every part: inputs, and what is made of them"],
  ];
  const there = new Set(network.cards.map((card) => card.what));
  if (there.has("input") || there.has("mean")) there.add("shared");
  return table(
    null,
    kinds.filter(([what]) => there.has(what)).map(([what, runs, text]) => [example(network, what, runs), text]),
  );
}

function sizes(network) {
  const { whole, parts } = network.sizes;
  const rows = [["whole", whole], ...parts.map((size, part) => [partName(part), size])];
  const share = (size) => `${((100 * size.parameters) / Math.max(1, whole.parameters)).toFixed(1)}%`;
  return table(
    ["", "parameters", "", "MACs"],
    rows.map(([name, size]) => [name, tabular(size.parameters), share(size), tabular(size.macs)]),
  );
}

/** Cards that aren't simply divided, those of one reason under it. */
function exceptions(network, go) {
  const groups = new Map();
  network.cards.forEach((card, n) => {
    if (!["duplicated", "replicated", "blocked"].includes(card.what)) return;
    const why = { duplicated: "duplicated", replicated: "replicated", blocked: "blocked" }[card.what];
    const text = `${why}: ${card.reason || card.cause || "nothing divides it"}`;
    if (!groups.has(text)) groups.set(text, []);
    groups.get(text).push(n);
  });
  return [...groups].map(([text, cards]) => {
    const made = html("details");
    made.append(html("summary", `${cards.length} ${text}`), ...cards.map((n) => link(network, n, go)));
    return made;
  });
}

function link(network, n, go) {
  const made = html("button", network.name(network.cards[n]), "link");
  made.addEventListener("click", () => go(n));
  return made;
}

const KEYS = [
  ["arrows, drag", "move"],
  ["+ −, wheel", "nearer, farther"],
  ["0", "all of it"],
  ["n p", "next, previous card"],
  ["u", "unfold all"],
  ["/", "search"],
  ["Esc", "back to this"],
];

export function showOverview(panel, network, go) {
  const order = network.order === "contiguous" ? "" : `, ${network.order}`;
  const except = exceptions(network, go);
  panel.replaceChildren(
    html(
      "p",
      `Each bar is a layer, and its width the number of its units (the widest has ${count(network.widest)}). Its colours say which part has which unit${order}. At the lower right is the number of its parameters.`,
    ),
    legend(network),
    heading("Sizes"),
    sizes(network),
    ...(except.length ? [heading("Not simply divided"), ...except] : []),
    heading("Keys"),
    table(null, KEYS),
  );
}

export function showCard(panel, network, n, go, close) {
  const card = network.cards[n];
  const back = html("button", "✕", "close");
  back.title = "back (Esc)";
  back.addEventListener("click", close);
  const head = html("div", "", "head");
  head.append(html("h1", card.title), back);
  panel.replaceChildren(
    head,
    html("p", `${card.op} ${card.shape}`, "quiet"),
    html(
      "p",
      network.sentence(card) + (card.in_order ? "" : " They lie in many pieces; the bar shows them sorted by part."),
    ),
    ...(card.reason ? [html("p", `Why: ${card.reason}.`)] : []),
    ...chain(network, card, go),
    ...numbers(network, card),
    ...together(network, n, go),
    ...initializers(card),
    ...operators(card),
    ...neighbours(network, n, go),
  );
}

function numbers(network, card) {
  const { parts, every } = network.units(card);
  const rows = [["whole", 0, card.units], ...parts.map((size, part) => [partName(part), part + 1, size + every])];
  const cell = (list, at) => (list.length ? tabular(list[at]) : "");
  if (!card.units && !card.parameters.length && !card.macs.length) return [];
  return [
    heading("Sizes"),
    table(
      ["", "units", "parameters", "MACs"],
      rows.map(([name, at, units]) => [
        name,
        card.units ? count(units) : "",
        cell(card.parameters, at),
        cell(card.macs, at),
      ]),
    ),
  ];
}

function chain(network, card, go) {
  if (!card.cause) return [];
  const list = html("ol");
  for (const step of card.chain) {
    const line = html("li");
    line.append(html("span", `${step.source} is tied to ${step.target} by `));
    line.append(step.card < 0 ? html("span", step.node) : link(network, step.card, go));
    if (step.reason) line.append(html("span", ` (${step.reason})`));
    list.append(line);
  }
  const end = html("p", `${card.cause}. `);
  if (card.held >= 0) end.append(link(network, card.held, go));
  return [heading("What holds it"), ...(card.chain.length ? [list] : []), end];
}

/** The layer to which the units belong: where they come into being, and what moves with them. */
function together(network, n, go) {
  const { home } = network.cards[n];
  if (home < 0) return [];
  const others = network.cards.flatMap((card, m) => (card.home === home && m !== n ? [m] : []));
  if (!others.length) return [];
  const box = html("details");
  box.append(html("summary", `${others.length} cards hold the same units`), ...others.map((m) => link(network, m, go)));
  return [heading("Moves together"), box];
}

function terms(lines) {
  const list = html("dl");
  list.append(...lines.flatMap(([term, text]) => [html("dt", term), html("dd", text)]));
  return list;
}

function operators(card) {
  if (!card.operators.length) return [];
  const lines = card.operators.map(({ name, op, outputs, shape }) => [name || outputs[0] || op, `${op} ${shape}`]);
  return [heading(lines.length === 1 ? "Node" : "Nodes"), terms(lines)];
}

function initializers(card) {
  if (!card.initializers.length) return [];
  const shape = (dims) => `[${dims.join(", ")}]`;
  const lines = card.initializers.map(({ name, shape: whole, parts, merging }) => {
    const alike = parts.every((part) => String(part) === String(parts[0]));
    const each = alike ? `each part ${shape(parts[0])}` : `parts ${parts.map(shape).join(" ")}`;
    return [name, `${shape(whole)}, ${each}; ${merging}`];
  });
  return [heading("Initializers"), terms(lines)];
}

function neighbours(network, n, go) {
  const row = (text, cards) => {
    const line = html("p");
    line.append(html("span", text, "quiet"), ...cards.slice(0, 12).map((m) => link(network, m, go)));
    return cards.length ? [line] : [];
  };
  return [...row("reads ", network.cards[n].reads), ...row("read by ", network.readers[n])];
}
