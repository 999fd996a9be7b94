// Puts the page together: data, drawing, view, panel, search and keys.

import { Drawing } from "./drawing.js";
import { layout } from "./layout.js";
import { Network } from "./network.js";
import { showCard, showOverview } from "./panel.js";
import { picture, save } from "./picture.js";
import { attachSearch } from "./search.js";
import { Tooltip } from "./tooltip.js";
import { View } from "./view.js";

const find = (id) => document.getElementById(id);
const network = new Network(JSON.parse(find("partition").textContent));
const svg = find("graph");
const panel = find("panel");
const drawing = new Drawing(svg, network);
const view = new View(svg, () => drawing.show(view.visible(), view.scale));
const tooltip = new Tooltip(find("tooltip"), network);
const unfolded = new Set();
let selected = null;

/** Lay out what is folded and unfolded now; the point under `anchor`, a card, stays where it is. */
function arrange(anchor) {
  const before = anchor === undefined ? null : drawing.place(anchor);
  const { width, height } = svg.getBoundingClientRect();
  drawing.take(layout(network, unfolded, width / height));
  view.extent = drawing.extent;
  const after = anchor === undefined ? null : drawing.place(anchor);
  if (before && after) view.follow(before, after);
  else view.fit();
  drawing.select(selected);
  drawing.show(view.visible(), view.scale);
}

/** Show a card in the panel, with its chain and what moves with it; null shows the overview. */
function select(card, move = false) {
  selected = card;
  drawing.select(card);
  if (card === null) showOverview(panel, network, (other) => select(other, true));
  else
    showCard(
      panel,
      network,
      card,
      (other) => select(other, true),
      () => select(null),
    );
  if (card !== null && move) view.goTo(drawing.place(card));
  drawing.show(view.visible(), view.scale);
}

/** Fold or unfold a block. */
function toggle(key, card) {
  if (!unfolded.delete(key)) unfolded.add(key);
  tooltip.hide();
  arrange(card);
}

/** Unfold everything, or fold it again. */
function toggleAll() {
  const keys = network.blockKeys();
  const all = keys.every((key) => unfolded.has(key));
  for (const key of keys) all ? unfolded.delete(key) : unfolded.add(key);
  find("unfold").setAttribute("aria-pressed", String(!all));
  arrange();
}

/** Save what is folded and unfolded now, and selected, as a picture of all of it. */
function savePicture() {
  drawing.print(true);
  save(picture(svg), `${network.model.replace(/\.onnx$/, "")}.svg`);
  drawing.print(false);
  drawing.show(view.visible(), view.scale);
}

/** Select the next or the previous card that is drawn. */
function step(by) {
  const order = drawing.order();
  const here = selected === null ? -1 : order.indexOf(drawing.shown(selected));
  const next = here < 0 ? (by > 0 ? 0 : order.length - 1) : here + by;
  if (order[next] !== undefined) select(order[next], true);
}

const PAN = 80;
const keys = {
  ArrowUp: () => view.pan(0, PAN),
  ArrowDown: () => view.pan(0, -PAN),
  ArrowLeft: () => view.pan(PAN, 0),
  ArrowRight: () => view.pan(-PAN, 0),
  "+": () => view.zoom(1.3),
  "=": () => view.zoom(1.3),
  "-": () => view.zoom(1 / 1.3),
  0: () => view.fit(),
  n: () => step(1),
  p: () => step(-1),
  u: toggleAll,
  "/": () => find("search").focus(),
  Escape: () => select(null),
};
document.addEventListener("keydown", (event) => {
  if (event.target.closest("input, #found") || event.ctrlKey || event.metaKey || event.altKey) return;
  const act = keys[event.key];
  if (!act) return;
  event.preventDefault();
  act();
});

/** The card under the pointer; null where there is none. */
function cardAt(event) {
  const near = event.target.closest("[data-card]");
  return near ? Number(near.dataset.card) : drawing.cardFarAt(...view.point(event));
}

svg.addEventListener("click", (event) => {
  const block = event.target.closest("[data-block]");
  const card = cardAt(event);
  if (card !== null) select(card);
  else if (block) toggle(block.dataset.block, Number(block.dataset.first));
  else select(null);
});
svg.addEventListener("pointermove", (event) => {
  const card = event.buttons ? null : cardAt(event);
  if (card !== null) tooltip.show(card, event.clientX, event.clientY);
  else tooltip.hide();
});
svg.addEventListener("pointerleave", () => tooltip.hide());
find("fit").addEventListener("click", () => view.fit());
find("closer").addEventListener("click", () => view.zoom(1.3));
find("farther").addEventListener("click", () => view.zoom(1 / 1.3));
find("picture").addEventListener("click", savePicture);
find("unfold").addEventListener("click", toggleAll);
find("unfold").hidden = network.blockKeys().length === 0;
attachSearch(find("search"), find("found"), network, (card) => select(card, true));
window.addEventListener("resize", () => drawing.show(view.visible(), view.scale));
window.addEventListener("beforeprint", () => drawing.print(true));
window.addEventListener("afterprint", () => {
  drawing.print(false);
  drawing.show(view.visible(), view.scale);
});

arrange();
select(null);
