// What the page knows of the network: cards, blocks, and words for what stands at a card.

const number = new Intl.NumberFormat("en");
export const count = (value) => number.format(value);

const compact = (digits) => new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: digits });
const brief = compact(3);
const exact = compact(4);
/** A number for a card: 812, 1.25K, 26M. */
export const short = (value) => brief.format(value);
/** A number for a table, whole as long as there is room. */
export const tabular = (value) => (value < 1e6 ? count(value) : exact.format(value));

export const key = (block) => `${block.start}:${block.period}:${block.count}`;

export class Network {
  constructor(data) {
    Object.assign(this, data);
    this.widest = Math.max(1, ...this.cards.map((card) => card.units));
    this.readers = this.cards.map(() => []);
    this.cards.forEach((card, n) => card.reads.forEach((read) => this.readers[read].push(n)));
  }

  /** The keys of all blocks as they are when everything is unfolded. */
  blockKeys() {
    const keys = [];
    const visit = (items, shift) => {
      for (const item of items) {
        if (typeof item === "number") continue;
        const block = { ...item, start: item.start + shift };
        keys.push(key(block));
        for (let r = 0; r < block.count; r += 1) visit(item.items, shift + r * block.period);
      }
    };
    visit(this.items, 0);
    return keys;
  }

  /** How many units of a card each part has, and how many every part has. */
  units(card) {
    const parts = new Array(this.k).fill(0);
    let every = 0;
    for (const [part, size] of card.runs) {
      if (part < 0) every += size;
      else parts[part] += size;
    }
    return { parts, every };
  }

  /** The units of the parts in a few characters: 10 + 10, or 8 × 64. */
  share(card) {
    const { parts, every } = this.units(card);
    const alike = parts.every((size) => size === parts[0]);
    const text = alike && this.k > 2 ? `${this.k} × ${parts[0]}` : this.k > 4 ? "by part" : parts.join(" + ");
    return every ? `${text} + ${every} in all` : text;
  }

  /** What stands at a card, in a few words. */
  brief(card) {
    const units = card.units === 1 ? "1 unit" : `${card.units} units`;
    const words = {
      input: "every part gets all of it",
      output: this.averaged(card) ? "made of the parts' mean" : "output",
      divided: `${units}: ${this.share(card)}`,
      duplicated: `each mixes its own: ${this.share(card)}`,
      meeting: `${card.units ? `${units}: ` : ""}the parts add up`,
      mean: "made of the parts' mean",
      replicated: card.units ? `${units}, all in every part` : "in every part",
      blocked: "not divided: no rule",
      shared: "the same in every part",
    };
    return words[card.what];
  }

  /** Whether an output is made of what the parts add up to. */
  averaged(card) {
    return card.reads.some((read) => ["meeting", "mean"].includes(this.cards[read].what));
  }

  /**
   * How a card is called on it: a node's name without the operator that exporters put at its end. Where such a name
   * says nothing of the module, that of the card's first parameter does.
   */
  name(card) {
    const parameter = card.initializers.map(({ name }) => name).find((name) => name.includes("."));
    if (parameter && !/[/.]/.test(card.title)) return parameter.slice(0, parameter.lastIndexOf("."));
    const end = `/${card.op}`;
    const name =
      card.title.length > end.length && card.title.endsWith(end) ? card.title.slice(0, -end.length) : card.title;
    return name.replace(/^\/+/, "");
  }

  /** What stands at a card, in a sentence. */
  sentence(card) {
    const words = {
      input: "An input of the network. Every part gets all of it.",
      output: "An output of the network.",
      divided: card.runs.some(([part]) => part < 0)
        ? "Some units belong to one part each, the others are in every part."
        : "Each unit belongs to one part.",
      duplicated: "Units are mixed here without weights, so each part mixes its own units among themselves.",
      meeting:
        "Each part contributes to every unit with its own weights. In the whole these contributions add up, divided by K.",
      mean: "It is made of what the parts add up to.",
      replicated: "Not divided: every part has all units, with values of its own. Merging takes their mean.",
      blocked: "Not divided: the operator has no rule, so every part has all of it.",
      shared: "It doesn't depend on parameters and is the same in every part.",
    };
    return words[card.what];
  }
}
