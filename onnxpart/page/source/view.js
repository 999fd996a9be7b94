// Zoom and pan, by mouse, touch and the calls that keys make.

import { select } from "d3-selection";
import { zoom, zoomIdentity } from "d3-zoom";

const MARGIN = 24;
const LIMITS = [0.01, 4];

export class View {
  /** @param changed called, at most once per frame, after the view has moved. */
  constructor(svg, changed) {
    this.svg = svg;
    this.extent = { width: 1, height: 1 };
    this.transform = zoomIdentity;
    const world = svg.querySelector("#world");
    let waiting = false;
    this.behaviour = zoom()
      .scaleExtent(LIMITS)
      .on("zoom", ({ transform }) => {
        this.transform = transform;
        world.setAttribute("transform", transform);
        if (waiting) return;
        waiting = true;
        requestAnimationFrame(() => {
          waiting = false;
          changed();
        });
      });
    this.selection = select(svg).call(this.behaviour).on("dblclick.zoom", null);
  }

  get scale() {
    return this.transform.k;
  }

  /** The part of the drawing that is in view. */
  visible() {
    const { width, height } = this.svg.getBoundingClientRect();
    const [left, top] = this.transform.invert([0, 0]);
    const [right, bottom] = this.transform.invert([width, height]);
    return { left, top, right, bottom };
  }

  /** Where in the drawing a pointer is. */
  point(event) {
    const { left, top } = this.svg.getBoundingClientRect();
    return this.transform.invert([event.clientX - left, event.clientY - top]);
  }

  set(transform) {
    this.selection.call(this.behaviour.transform, transform);
  }

  pan(x, y) {
    this.selection.call(this.behaviour.translateBy, x / this.scale, y / this.scale);
  }

  zoom(factor) {
    this.selection.call(this.behaviour.scaleBy, factor);
  }

  /** Bring all of it into view, no larger than life. */
  fit() {
    const { width, height } = this.svg.getBoundingClientRect();
    const room = [(width - 2 * MARGIN) / this.extent.width, (height - 2 * MARGIN) / this.extent.height];
    const scale = Math.min(1.25, ...room);
    const x = (width - this.extent.width * scale) / 2;
    const y = Math.max(MARGIN, (height - this.extent.height * scale) / 2);
    this.set(zoomIdentity.translate(x, y).scale(scale));
  }

  /** Put a box in the middle, near enough to be read. */
  goTo(box) {
    const { width, height } = this.svg.getBoundingClientRect();
    const scale = Math.max(this.scale, 0.8);
    this.set(
      zoomIdentity
        .translate(width / 2 - (box.x + box.width / 2) * scale, height / 2 - (box.y + box.height / 2) * scale)
        .scale(scale),
    );
  }

  /** Keep a box where it is on the screen although it has moved in the drawing. */
  follow(before, after) {
    this.set(this.transform.translate(before.x - after.x, before.y - after.y));
  }
}
