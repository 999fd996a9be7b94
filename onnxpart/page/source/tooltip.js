// What stands at a card, beside the pointer.

import { count } from "./network.js";

export class Tooltip {
  constructor(box, network) {
    Object.assign(this, { box, network });
  }

  show(n, x, y) {
    const card = this.network.cards[n];
    const lines = [
      [card.title, "name"],
      [`${card.op} ${card.shape}`, "quiet"],
      [this.network.sentence(card), ""],
      [card.runs.some(([part]) => part >= 0) ? this.parts(card) : "", ""],
      [card.reason && `Why: ${card.reason}.`, ""],
      [card.cause && `Held by ${card.cause}.`, ""],
    ];
    this.box.replaceChildren(
      ...lines
        .filter(([text]) => text)
        .map(([text, style]) => {
          const line = document.createElement("div");
          line.className = style;
          line.textContent = text;
          return line;
        }),
    );
    this.box.hidden = false;
    const { width, height } = this.box.getBoundingClientRect();
    this.box.style.left = `${Math.max(4, Math.min(x + 14, window.innerWidth - width - 8))}px`;
    this.box.style.top = `${y + 18 + height > window.innerHeight ? y - height - 10 : y + 18}px`;
  }

  parts(card) {
    const { parts, every } = this.network.units(card);
    const told = parts.slice(0, 8).map((size, part) => `part ${part}: ${count(size)}`);
    return [...told, parts.length > 8 ? "…" : "", every ? `every part: ${count(every)}` : ""]
      .filter(Boolean)
      .join(", ");
  }

  hide() {
    this.box.hidden = true;
  }
}
