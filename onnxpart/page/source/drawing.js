// Draws what is in view and nothing else; from afar only bars, one path for each part.

import { colour, element, fill, patterns, pieces } from "./colours.js";
import { CARD } from "./layout.js";
import { key, short } from "./network.js";

const FAR = 0.3;
const BAR = { y: 22, height: 14, most: 200, least: 3 };
const LETTER = { title: 7.4, op: 6.3 };

/** The end of a name, which tells it apart from others, where all of it is too long. */
const tail = (text, most) => (text.length > most ? `…${text.slice(1 - most)}` : text);
const head = (text, most) => (text.length > most ? `${text.slice(0, most - 1)}…` : text);

export class Drawing {
  constructor(svg, network) {
    Object.assign(this, {
      svg,
      network,
      boxes: [],
      edges: [],
      drawn: new Map(),
      far: [],
      selection: null,
      together: new Set(),
    });
    svg.append(element("defs", {}, ...patterns(network.k)));
    this.layers = {};
    const world = element("g", { id: "world" });
    for (const name of ["blocks", "edges", "far", "cards", "chain"]) {
      this.layers[name] = element("g", { class: name });
      world.append(this.layers[name]);
    }
    svg.append(world);
  }

  /** Take a new layout: what was drawn is gone. */
  take({ width, height, boxes, edges }) {
    this.extent = { width, height };
    this.boxes = [];
    this.edges = [];
    this.places = new Map();
    const add = (list, lines, x, y) => {
      for (const points of lines) this.edges.push(points.map(([a, b]) => [a + x, b + y]));
      for (const box of list) {
        const here = { ...box, x: box.x + x, y: box.y + y };
        if (box.kind !== "port") this.boxes.push(here);
        if (box.kind === "card") this.places.set(box.card, here);
        if (box.kind === "block") add(box.boxes, box.edges, here.x, here.y);
      }
    };
    add(boxes, edges, 0, 0);
    this.edges = this.edges.map((points) => ({ points, ...bounds(points) }));
    for (const layer of Object.values(this.layers)) layer.replaceChildren();
    this.drawn.clear();
  }

  /** The card that stands for another: itself, or the one in the first repeat of a folded block. */
  shown(card) {
    if (this.places.has(card)) return card;
    let at = card;
    for (const { kind, open, from, to, block } of this.boxes) {
      if (kind === "block" && !open && from <= at && at < to) at = from + ((at - from) % block.period);
    }
    return at;
  }

  place(card) {
    return this.places.get(this.shown(card));
  }

  /** The cards that are drawn, from first to last. */
  order() {
    return [...this.places.keys()].sort((a, b) => a - b);
  }

  /** Mark a card, what moves with it, and the chain to what holds it. */
  select(card) {
    this.selection = card === null ? null : this.shown(card);
    const home = card === null ? -1 : this.network.cards[card].home;
    this.together = new Set(
      home < 0 ? [] : this.network.cards.flatMap((c, n) => (c.home === home ? [this.shown(n)] : [])),
    );
    for (const [id, group] of this.drawn) this.mark(id, group);
    this.layers.chain.replaceChildren(...(card === null ? [] : this.chain(card)));
  }

  mark(id, group) {
    if (typeof id !== "number") return;
    group.classList.toggle("selected", id === this.selection);
    group.classList.toggle("together", this.together.has(id) && id !== this.selection);
  }

  /** The way from what is undivided to what holds it, as a line with numbers. */
  chain(card) {
    const { chain, held } = this.network.cards[card];
    const stops = [card, ...chain.map((step) => step.card), held].filter((n) => n >= 0).map((n) => this.shown(n));
    const places = stops.filter((n, i) => n !== stops[i - 1]).map((n) => this.places.get(n));
    if (places.length < 2) return [];
    const points = places.map((box) => [box.x + box.width + 10, box.y + box.height / 2]);
    const line = element("path", { d: curve(points) });
    const dots = points.map(([x, y], i) =>
      element(
        "g",
        { transform: `translate(${x} ${y})` },
        element("circle", { r: 9 }),
        label(i + 1, { "text-anchor": "middle", y: 4 }),
      ),
    );
    return [line, ...dots];
  }

  /** Draw what is in `area`, at a scale; `null`: all. */
  show(area, scale) {
    const seen = (box) =>
      !area ||
      (box.x < area.right && box.x + box.width > area.left && box.y < area.bottom && box.y + box.height > area.top);
    const boxes = this.boxes.filter(seen);
    const far = area !== null && scale < FAR;
    this.far = far ? boxes.filter((box) => box.kind === "card") : [];
    this.layers.far.replaceChildren(...(far ? this.distant() : []));
    const wanted = new Map();
    for (const box of boxes) {
      if (box.kind === "card" && !far) wanted.set(box.card, box);
      if (box.kind === "block") wanted.set(`${key(box.block)} ${box.repeat}`, box);
    }
    for (const [id, group] of this.drawn) {
      if (wanted.has(id)) continue;
      group.remove();
      this.drawn.delete(id);
    }
    for (const [id, box] of wanted) {
      if (this.drawn.has(id)) continue;
      const group = box.kind === "card" ? this.card(box) : this.block(box);
      this.layers[box.kind === "card" ? "cards" : "blocks"].append(group);
      this.drawn.set(id, group);
      this.mark(id, group);
    }
    const lines = this.edges.filter(seen).map(({ points }) => `M${points.map((p) => p.join(" ")).join("L")}`);
    this.layers.edges.replaceChildren(element("path", { d: lines.join("") }));
  }

  /** Cards from afar: the frames as one path, and the bars as one for each part. */
  distant() {
    const paths = new Map([["frame", []]]);
    for (const box of this.far) {
      const card = this.network.cards[box.card];
      paths.get("frame").push(`M${box.x} ${box.y}h${box.width}v${box.height}h${-box.width}z`);
      const width = this.barWidth(card);
      for (const [part, x, y, w, h] of pieces(this.network, card, width, box.height - 12)) {
        if (!paths.has(part)) paths.set(part, []);
        paths.get(part).push(`M${box.x + (box.width - width) / 2 + x} ${box.y + 6 + y}h${w}v${h}h${-w}z`);
      }
    }
    return [...paths].map(([part, d]) =>
      element("path", {
        d: d.join(""),
        ...(part === "frame" ? { class: "frame" } : { fill: part < 0 ? "var(--shared)" : colour(part) }),
      }),
    );
  }

  /** The card at a place of the drawing that is seen from afar; null where there is none. */
  cardFarAt(x, y) {
    const inside = (box) => box.x <= x && x <= box.x + box.width && box.y <= y && y <= box.y + box.height;
    return this.far.find(inside)?.card ?? null;
  }

  barWidth(card) {
    return Math.max(BAR.least, (BAR.most * (card.units || this.network.widest * 0.25)) / this.network.widest);
  }

  card(box) {
    const card = this.network.cards[box.card];
    const width = this.barWidth(card);
    const height = card.what === "input" || card.what === "output" || !card.units ? BAR.height / 3 : BAR.height;
    const left = (CARD.width - width) / 2;
    const bar = pieces(this.network, card, width, height).map(([part, x, y, w, h]) =>
      element("rect", { x, y, width: w, height: h, fill: fill(part), class: card.what === "duplicated" ? "own" : "" }),
    );
    const more = card.operators.length > 1 ? ` +${card.operators.length - 1}` : "";
    const op = head(card.op, 16) + more;
    const room = Math.floor((CARD.width - 26 - op.length * LETTER.op) / LETTER.title);
    return element(
      "g",
      { class: `card ${card.what}`, "data-card": box.card, transform: `translate(${box.x} ${box.y})` },
      element("rect", { class: "frame", width: CARD.width, height: CARD.height, rx: 5 }),
      label(tail(this.network.name(card), room), { class: "title", x: 8, y: 15 }),
      label(op, { class: "op", x: CARD.width - 8, y: 15, "text-anchor": "end" }),
      ...this.names(box),
      element("g", { transform: `translate(${left} ${BAR.y + (BAR.height - height) / 2})` }, ...bar),
      ...sign(card.what, left + width),
      label(this.network.brief(card), { class: "brief", x: 8, y: 51 }),
      label(card.parameters[0] ? short(card.parameters[0]) : "", {
        class: "op",
        x: CARD.width - 8,
        y: 51,
        "text-anchor": "end",
      }),
    );
  }

  /** What a box reads without a line, since very many others do. */
  names({ names }) {
    if (!names) return [];
    const more = names.length > 1 ? ` and ${names.length - 1} more` : "";
    return [
      label(`reads ${tail(this.network.name(this.network.cards[names[0]]), 24)}${more}`, { class: "op", x: 8, y: -4 }),
    ];
  }

  block(box) {
    const { block, open, repeat, from } = box;
    const text = open ? `${repeat + 1} of ${block.count}` : `× ${block.count}`;
    const hint = open ? "click to fold" : "alike; click to unfold";
    return element(
      "g",
      { class: "block", "data-block": key(block), "data-first": from, transform: `translate(${box.x} ${box.y})` },
      ...(open
        ? []
        : [8, 4].map((d) =>
            element("rect", { class: "behind", x: d, y: d, width: box.width, height: box.height, rx: 8 }),
          )),
      element("rect", { class: "frame", width: box.width, height: box.height, rx: 8 }),
      ...this.names(box),
      label(text, { class: "count", x: 10, y: 17 }),
      label(hint, { class: "op", x: box.width - 10, y: 16, "text-anchor": "end" }),
    );
  }

  /** Draw all for paper, or go back to what is in view. */
  print(on) {
    if (on) this.show(null, 1);
    const { width, height } = this.extent;
    if (on) this.svg.setAttribute("viewBox", `-20 -20 ${width + 40} ${height + 40}`);
    else this.svg.removeAttribute("viewBox");
  }
}

function label(text, attributes) {
  const made = element("text", attributes);
  made.textContent = text;
  return made;
}

/** A sign beside the bar: contributions add up, each part has a copy, no rule. */
function sign(what, x) {
  const signs = { meeting: "Σ", replicated: "=", blocked: "!" };
  return signs[what] ? [label(signs[what], { class: `sign ${what}`, x: x + 6, y: BAR.y + 12 })] : [];
}

function bounds(points) {
  const xs = points.map(([x]) => x);
  const ys = points.map(([, y]) => y);
  const [x, y] = [Math.min(...xs), Math.min(...ys)];
  return { x, y, width: Math.max(...xs) - x + 1, height: Math.max(...ys) - y + 1 };
}

/** A line that bows to the right between stops, so that it runs beside the cards. */
function curve(points) {
  return points.reduce((d, [x, y], i) => {
    if (!i) return `M${x} ${y}`;
    const bow = Math.max(x, points[i - 1][0]) + 30;
    return `${d}C${bow} ${points[i - 1][1]} ${bow} ${y} ${x} ${y}`;
  }, "");
}
