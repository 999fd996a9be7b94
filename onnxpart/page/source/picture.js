// The drawing as a file of SVG that needs no style sheet, for papers and slides.

const KEPT = ["fill", "fill-opacity", "stroke", "stroke-width", "stroke-dasharray", "stroke-linecap", "stroke-opacity"];
const OF_TEXT = ["font-family", "font-size", "font-weight", "text-anchor"];
const SEEN = { rect: KEPT, path: KEPT, circle: KEPT, text: [...KEPT, ...OF_TEXT] };

/** All that stands in an SVG element, its colours and letters written where they are. */
export function picture(svg) {
  const copy = svg.cloneNode(true);
  const copies = copy.querySelectorAll("*");
  svg.querySelectorAll("*").forEach((element, n) => {
    const style = getComputedStyle(element);
    for (const name of SEEN[element.tagName] ?? []) copies[n].setAttribute(name, style.getPropertyValue(name));
    copies[n].removeAttribute("class");
  });
  for (const name of ["class", "id", "style"]) copy.removeAttribute(name);
  copy.querySelector("#world").removeAttribute("transform");
  return new XMLSerializer().serializeToString(copy);
}

/** Give a text to the browser to save as a file. */
export function save(text, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "image/svg+xml" }));
  link.download = name;
  link.click();
  URL.revokeObjectURL(link.href);
}
