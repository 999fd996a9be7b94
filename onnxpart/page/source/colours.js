// Colours and patterns of the parts: those of Okabe and Ito, told apart by colour-blind eyes, and a pattern each for
// print and for those who see no colours.

const COLOURS = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442"];
const LINES = ["", "M0 8L8 0", "M4 4h.01", "M0 4H8", "M0 0L8 8", "M4 0V8", "M0 8L8 0M0 0L8 8"];
const SVG = "http://www.w3.org/2000/svg";

export const colour = (part) => COLOURS[part % COLOURS.length];
export const fill = (part) => (part < 0 ? "var(--shared)" : `url(#part${part})`);

export function element(name, attributes = {}, ...children) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

/** The patterns of K parts, which `fill` names. */
export function patterns(k) {
  return Array.from({ length: k }, (_, part) => {
    const lines = LINES[(part + Math.floor(part / COLOURS.length)) % LINES.length];
    return element(
      "pattern",
      { id: `part${part}`, width: 8, height: 8, patternUnits: "userSpaceOnUse" },
      element("rect", { width: 8, height: 8, fill: colour(part) }),
      element("path", {
        d: lines,
        stroke: "#fff",
        "stroke-opacity": 0.75,
        "stroke-width": lines.includes("h.01") ? 3 : 1.4,
        "stroke-linecap": "round",
      }),
    );
  });
}

/** The units of a card as pieces of a bar: [part, x, y, width, height]. */
export function pieces(network, card, width, height) {
  if (!card.units) return [[-1, 0, 0, width, height]];
  const undivided = card.runs.every(([part]) => part < 0);
  if (undivided && ["replicated", "meeting", "blocked"].includes(card.what)) {
    const bands = Math.min(network.k, 8);
    return Array.from({ length: bands }, (_, part) => [part, 0, (part * height) / bands, width, height / bands]);
  }
  let x = 0;
  return card.runs.map(([part, size]) => {
    const piece = [part, x, 0, (size / card.units) * width, height];
    x += piece[3];
    return piece;
  });
}
