// Finds cards by the names of nodes, values and initializers.

const MOST = 40;

/** The names of a network, each with its card. */
export function names(network) {
  return network.cards.flatMap((card, n) =>
    [
      ...new Set([
        card.title,
        ...card.operators.flatMap((operator) => [operator.name, ...operator.outputs]),
        ...card.initializers.map((initializer) => initializer.name),
      ]),
    ]
      .filter(Boolean)
      .map((name) => ({ name, lower: name.toLowerCase(), card: n })),
  );
}

/** Those that hold a text, and first those that begin with it. */
export function matches(list, text) {
  const wanted = text.trim().toLowerCase();
  if (!wanted) return [];
  const found = list.filter(({ lower }) => lower.includes(wanted));
  return found
    .sort((a, b) => a.lower.indexOf(wanted) - b.lower.indexOf(wanted) || a.name.length - b.name.length)
    .slice(0, MOST);
}

export function attachSearch(input, list, network, choose) {
  const known = names(network);
  let found = [];
  const show = () => {
    found = matches(known, input.value);
    list.hidden = !input.value.trim();
    list.replaceChildren(
      ...(found.length ? found : [null]).map((match) => {
        const line = document.createElement(match ? "button" : "div");
        line.textContent = match ? match.name : "nothing has this in its name";
        line.title = match ? match.name : "";
        if (match) line.addEventListener("click", () => take(match));
        return line;
      }),
    );
  };
  const take = (match) => {
    list.hidden = true;
    input.blur();
    choose(match.card);
  };
  input.addEventListener("input", show);
  input.addEventListener("focus", show);
  input.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && found.length) take(found[0]);
    if (event.key === "ArrowDown") list.querySelector("button")?.focus();
    if (event.key === "Escape") {
      list.hidden = true;
      input.blur();
    }
  });
  list.addEventListener("keydown", (event) => {
    const next = { ArrowDown: "nextElementSibling", ArrowUp: "previousElementSibling" }[event.key];
    if (event.key === "Escape") list.hidden = true;
    if (!next) return;
    event.preventDefault();
    (event.target[next] ?? input).focus();
  });
  document.addEventListener("pointerdown", (event) => {
    if (!event.target.closest(".search")) list.hidden = true;
  });
}
