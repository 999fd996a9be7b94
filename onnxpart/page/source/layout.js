// Where cards and blocks are drawn. dagre draws what branches; sections between which all goes through one card are
// stacked, and the stack is broken into columns, so that the whole has about the shape of the window.

import dagre from "@dagrejs/dagre";
import { key } from "./network.js";

export const CARD = { width: 236, height: 58 };
const PORT = { width: 8, height: 2 };
const PAD = 14;
const HEADER = 22;
const GAP = 22;
const GUTTER = 56;
const READABLE = 1 / 600;
const SHORT = 0.2;
const MANY = 60;
const MANY_READERS = 6;

/** Boxes (cards, blocks) and edges (lists of points) of what is folded and unfolded, and the size of it all. */
export function layout(network, unfolded, aspect) {
  return columns(sections(network, entries(network.items, 0, unfolded, network), false), aspect);
}

/** What is drawn at one level: cards, folded blocks, and a box for each repeat of those that are unfolded. */
function entries(items, shift, unfolded, network) {
  return items.flatMap((item) => {
    if (typeof item === "number") {
      const card = item + shift;
      return [{ kind: "card", card, from: card, to: card + 1, ...CARD }];
    }
    const block = { ...item, start: item.start + shift };
    const open = unfolded.has(key(block));
    return Array.from({ length: open ? block.count : 1 }, (_, repeat) => {
      const from = block.start + repeat * block.period;
      const inner = entries(item.items, shift + repeat * block.period, unfolded, network);
      const size = open ? block.period : block.period * block.count;
      return boxed({ kind: "block", block, open, repeat, from, to: from + size }, inner, network);
    });
  });
}

/** A block around what is in it. */
function boxed(entry, inner, network) {
  const inside = stack(sections(network, inner, true, entry));
  const width = Math.max(inside.width + 2 * PAD, CARD.width);
  const left = (width - inside.width) / 2;
  const bottom = HEADER + inside.height;
  const boxes = inside.boxes.map((box) => ({ ...box, x: box.x + left, y: box.y + HEADER }));
  const edges = inside.edges.map((points) => points.map(([x, y]) => [x + left, y + HEADER]));
  edges.push(
    [
      [width / 2, 0],
      [inside.entry + left, HEADER],
    ],
    [
      [inside.exit + left, bottom],
      [width / 2, bottom + PAD],
    ],
  );
  return { ...entry, width, height: bottom + PAD, boxes, edges };
}

/**
 * Cut a level where one entry is all that later ones read of it and what is before. Each section begins with that
 * entry of the section before.
 */
function sections(network, level, inside, outer) {
  const owner = new Map();
  level.forEach((entry, n) => {
    for (let card = entry.from; card < entry.to; card += 1) owner.set(card, n);
  });
  const links = new Map();
  const link = (from, to) => from !== to && links.set(`${from} ${to}`, [from, to]);
  level.forEach((entry, n) => {
    for (let card = entry.from; card < entry.to; card += 1) {
      for (const read of network.cards[card].reads) {
        const source = owner.get(read);
        if (source !== undefined && source < n) link(source, n);
        else if (source === undefined && inside) link(-1, n);
      }
      if (inside && isRead(network, card, outer)) link(n, level.length);
    }
  });
  const pairs = [...links.values()].sort((a, b) => a[1] - b[1] || a[0] - b[0]);
  const near = named(level, pairs);
  const all = inside ? [{ kind: "port", ...PORT }, ...level, { kind: "port", ...PORT }] : level;
  return cut(all, inside ? near.map(([a, b]) => [a + 1, b + 1]) : near);
}

/**
 * Leave out the lines from what very many read, all but the first: they would hide everything else. The others get its
 * card's number in `names`, to be written beside them.
 */
function named(level, pairs) {
  const readers = new Map();
  for (const [a, b] of pairs) readers.set(a, [...(readers.get(a) ?? []), b]);
  return pairs.filter(([a, b]) => {
    const all = readers.get(a);
    if (a < 0 || all.length <= MANY_READERS || b === all[0] || b === level.length) return true;
    level[b].names = [...(level[b].names ?? []), level[a].to - 1];
    return false;
  });
}

/** Whether anything outside a block reads a card in it, or the next repeat does. */
function isRead(network, card, outer) {
  const { period, count } = outer.block;
  const repeats = outer.open ? 1 : count;
  return Array.from({ length: repeats }, (_, r) => card + r * period).some((copy) =>
    network.readers[copy]?.some(
      (reader) =>
        reader < outer.from ||
        reader >= outer.from + period * repeats ||
        Math.floor((reader - outer.from) / period) !== Math.floor((copy - outer.from) / period),
    ),
  );
}

function cut(all, pairs) {
  const last = all.map(() => -1);
  for (const [a, b] of pairs) last[a] = Math.max(last[a], b);
  const result = [];
  const beginning = all.findIndex((_, n) => pairs.some(([, b]) => b === n));
  let begin = 0;
  let open = -1;
  for (let n = 0; n < all.length; n += 1) {
    if ((open <= n && (n >= beginning || beginning === 1)) || n === all.length - 1) {
      result.push({
        members: all.slice(begin, n + 1),
        first: begin,
        pairs: [],
        joint: begin > 0 ? all[begin - 1] : null,
      });
      begin = n + 1;
    }
    open = Math.max(open, last[n]);
  }
  const section = new Map();
  result.forEach((part, s) => part.members.forEach((_, m) => section.set(part.first + m, s)));
  for (const [a, b] of pairs) result[section.get(b)].pairs.push([a, b]);
  return result.map(drawn);
}

/** Draw one section: the places of its members below its joint, whose lower edge is at (0, 0). */
function drawn({ members, first, pairs, joint }) {
  if (members.length === 1) {
    const [only] = members;
    const edges = pairs.length
      ? [
          [
            [0, 0],
            [0, GAP],
          ],
        ]
      : [];
    const top = joint ? GAP : 0;
    return { placed: [{ ...only, x: -only.width / 2, y: top }], edges, joint, begin: 0, end: 0 };
  }
  const sizes = members.map(({ width, height }) => [width, height]);
  const links = pairs.map(([a, b]) => [a - first, b - first]);
  const { corners, edges } = branching(sizes, links, joint ? joint.width : 0);
  const placed = members.map((member, m) => ({ ...member, x: corners[m][0], y: corners[m][1] }));
  const bottom = placed.at(-1);
  const begin = joint ? 0 : placed[0].x + placed[0].width / 2;
  return { placed, edges, joint, begin, end: bottom.x + bottom.width / 2 };
}

const known = new Map();

/**
 * dagre's places for boxes of some sizes, linked by pairs of numbers; -1 is the joint above them, of width `above` (0:
 * there is none). Networks have the same few shapes again and again, so each is laid out once.
 */
function branching(sizes, links, above) {
  const shape = JSON.stringify([sizes, links, above]);
  if (!known.has(shape)) known.set(shape, dagrePlaces(sizes, links, above));
  return known.get(shape);
}

function dagrePlaces(sizes, links, above) {
  const graph = new dagre.graphlib.Graph();
  const ranker = sizes.length > MANY ? "longest-path" : "network-simplex";
  graph.setGraph({ rankdir: "TB", nodesep: 26, ranksep: GAP, edgesep: 14, ranker });
  graph.setDefaultEdgeLabel(() => ({}));
  sizes.forEach(([width, height], n) => graph.setNode(String(n), { width, height }));
  const jointed = links.some(([a]) => a < 0);
  if (jointed) graph.setNode("-1", { width: above, height: 0 });
  for (const [a, b] of links) graph.setEdge(String(a), String(b));
  dagre.layout(graph);
  const top = jointed ? graph.node("-1") : { x: graph.graph().width / 2, y: above ? -GAP : 0 };
  const corners = sizes.map(([width, height], n) => {
    const { x, y } = graph.node(String(n));
    return [x - width / 2 - top.x, y - height / 2 - top.y];
  });
  // What reads nothing may stand above the joint: then all goes down, but for the ends of lines at the joint.
  const down = Math.max(0, (above ? GAP : 0) - Math.min(...corners.map(([, y]) => y)));
  const edges = graph.edges().map((edge) => {
    const points = graph.edge(edge).points.map(({ x, y }) => [x - top.x, y - top.y + down]);
    return edge.v === "-1" && down ? [[0, 0], ...points] : points;
  });
  return { corners: corners.map(([x, y]) => [x, y + down]), edges };
}

/** Sections one below the other. */
function stack(parts) {
  const boxes = [];
  const edges = [];
  let [x, y] = [0, 0];
  for (const part of parts) {
    for (const box of part.placed) boxes.push({ ...box, x: box.x + x, y: box.y + y });
    for (const points of part.edges) edges.push(points.map(([a, b]) => [a + x, b + y]));
    y += Math.max(...part.placed.map((box) => box.y + box.height));
    x += part.end;
  }
  const left = Math.min(...boxes.map((box) => box.x), ...edges.flat().map(([a]) => a));
  const right = Math.max(...boxes.map((box) => box.x + box.width), ...edges.flat().map(([a]) => a));
  const moved = boxes.map((box) => ({ ...box, x: box.x - left }));
  return {
    width: right - left,
    height: y,
    boxes: moved,
    edges: edges.map((points) => points.map(([a, b]) => [a - left, b])),
    entry: parts[0].begin - left,
    exit: x - left,
  };
}

/** Sections in columns side by side, and lines from the foot of each to the head of the next. */
function columns(parts, aspect) {
  const one = stack(parts);
  const wanted = Math.ceil(Math.sqrt((aspect * one.height) / CARD.width)) + 1;
  const tried = Array.from({ length: wanted }, (_, n) => broken(parts, one.height / (n + 1)));
  const nearness = ({ width, height }) => Math.min(aspect / width, 1 / height);
  const best = tried.reduce((a, b) => (nearness(b) > 1.1 * nearness(a) && nearness(a) < READABLE ? b : a));
  return best.groups.length === 1 ? one : sideBySide(best.groups);
}

const heightOf = (part) => Math.max(...part.placed.map((box) => box.y + box.height));
const widthOf = (part) =>
  Math.max(...part.placed.map((box) => box.x + box.width)) - Math.min(...part.placed.map((box) => box.x));

/** Sections in columns of about a height, and how wide and high all of them are. */
function broken(parts, most) {
  const groups = [];
  let here = Infinity;
  let [width, height, widest] = [-GUTTER, 0, 0];
  for (const part of parts) {
    const size = heightOf(part);
    if (here + size / 2 > most) {
      groups.push([]);
      width += widest + GUTTER;
      [here, widest] = [0, 0];
    }
    groups.at(-1).push(part);
    here += size;
    height = Math.max(height, here);
    widest = Math.max(widest, widthOf(part));
  }
  if (groups.length > 1 && here < most * SHORT) {
    groups.splice(-2, 2, groups.slice(-2).flat());
    width -= widest + GUTTER;
    height += here;
  }
  return { groups, width: width + widest, height };
}

function sideBySide(groups) {
  const boxes = [];
  const edges = [];
  let x = 0;
  let foot = null;
  let tallest = 0;
  for (const group of groups) {
    const column = stack(group);
    for (const box of column.boxes) boxes.push({ ...box, x: box.x + x });
    for (const points of column.edges) edges.push(points.map(([a, b]) => [a + x, b]));
    if (foot) {
      const gutter = x - GUTTER / 2;
      edges.push([
        foot,
        [foot[0], foot[1] + GAP / 2],
        [gutter, foot[1] + GAP / 2],
        [gutter, -GAP / 2],
        [x + column.entry, -GAP / 2],
        [x + column.entry, 0],
      ]);
    }
    foot = [x + column.exit, column.height];
    tallest = Math.max(tallest, column.height);
    x += column.width + GUTTER;
  }
  return { width: x - GUTTER, height: tallest + GAP, boxes, edges };
}
