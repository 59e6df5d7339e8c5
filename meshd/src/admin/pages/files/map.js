// The map: nodes in layers from callers to called, drawn the same way for the same graph, so that nothing jumps.
//
// A node's layer is its longest distance from a caller that nobody calls; edges that would close a circle are left out
// of the counting. Within a layer nodes stand by the middle of those who call them, then by name.

import { draw, percent, rate } from "./words.js";
import { judge, versions } from "./model.js";

const NODE = { width: 158, height: 58 };
/** Along: room for a label such as `47.0/s · 55.6 %` between two nodes. */
const GAP = { along: 128, across: 26 };
const MARGIN = 24;
/** Below this width, in pixels, calls go from top to bottom. */
const NARROW = 640;

/** Draws a graph into `place`; `chosen` is the id of the node that is looked at, `choose` is told of clicks. */
export function show(place, graph, chosen, choose) {
  const upright = place.clientWidth < NARROW;
  const focused = document.activeElement?.dataset?.node;
  const { at, width, height } = arrange(graph, upright);
  const near = neighbours(graph, chosen);
  const picture = draw("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "group", "aria-label": "Map of calls" });
  if (width > place.clientWidth - 2) picture.setAttribute("width", Math.max(place.clientWidth - 2, width * 0.62));
  if (width > place.clientWidth - 2) picture.removeAttribute("height");
  for (const link of graph.links) picture.append(edge(link, at, upright, near && !(near.has(link.from) && near.has(link.to))));
  for (const node of graph.nodes) picture.append(box(node, at.get(node.id), chosen === node.id, near && !near.has(node.id), choose));
  place.replaceChildren(picture);
  if (focused) picture.querySelector(`[data-node="${CSS.escape(focused)}"]`)?.focus();
}

function neighbours(graph, chosen) {
  if (!chosen) return undefined;
  const near = new Set([chosen]);
  for (const link of graph.links) {
    if (link.from === chosen) near.add(link.to);
    if (link.to === chosen) near.add(link.from);
  }
  return near;
}

/** Gives every node its place. */
function arrange(graph, upright) {
  const layers = [];
  for (const [id, layer] of depths(graph)) (layers[layer] ??= []).push(id);
  const order = new Map();
  for (const layer of layers) {
    const middle = (id) => {
      const callers = graph.links.filter((link) => link.to === id && order.has(link.from)).map((link) => order.get(link.from));
      return callers.length ? callers.reduce((sum, one) => sum + one, 0) / callers.length : Infinity;
    };
    const wanted = new Map(layer.map((id) => [id, middle(id)]));
    layer.sort((a, b) => {
      const [first, second] = [wanted.get(a), wanted.get(b)];
      return first === second ? a.localeCompare(b) : first - second;
    });
    layer.forEach((id, index) => order.set(id, index - (layer.length - 1) / 2));
  }
  const most = Math.max(1, ...layers.map((layer) => layer.length));
  const [step, stride] = upright
    ? [NODE.height + GAP.along * 0.5, NODE.width + GAP.across / 2]
    : [NODE.width + GAP.along, NODE.height + GAP.across];
  const across = most * stride - (upright ? GAP.across / 2 : GAP.across);
  const along = (layers.length - 1) * step + (upright ? NODE.height : NODE.width);
  const at = new Map();
  layers.forEach((layer, depth) => {
    layer.forEach((id, index) => {
      const side = (across - (layer.length * stride - (stride - (upright ? NODE.width : NODE.height)))) / 2 + index * stride;
      at.set(id, upright ? { x: MARGIN + side, y: MARGIN + depth * step } : { x: MARGIN + depth * step, y: MARGIN + side });
    });
  });
  const [w, h] = upright ? [across, along] : [along, across];
  return { at, width: w + 2 * MARGIN, height: h + 2 * MARGIN };
}

/** Returns each node's longest distance from those whom nobody calls, circles cut open. */
function depths(graph) {
  const calls = new Map(graph.nodes.map((node) => [node.id, []]));
  for (const link of [...graph.links].sort((a, b) => a.to.localeCompare(b.to))) calls.get(link.from).push(link.to);
  const called = new Set(graph.links.map((link) => link.to));
  const ids = graph.nodes.map((node) => node.id).sort((a, b) => called.has(a) - called.has(b) || a.localeCompare(b));
  const order = [];
  const state = new Map();
  const kept = new Map(ids.map((id) => [id, []]));
  for (const root of ids) {
    if (state.has(root)) continue;
    state.set(root, "open");
    const stack = [[root, 0]];
    while (stack.length) {
      const top = stack.at(-1);
      const next = calls.get(top[0])[top[1]++];
      if (next === undefined) {
        state.set(top[0], "done");
        order.push(top[0]);
        stack.pop();
      } else if (state.get(next) !== "open") {
        kept.get(top[0]).push(next);
        if (!state.has(next)) {
          state.set(next, "open");
          stack.push([next, 0]);
        }
      }
    }
  }
  const depth = new Map(ids.map((id) => [id, 0]));
  for (const id of order.reverse()) {
    for (const next of kept.get(id)) depth.set(next, Math.max(depth.get(next), depth.get(id) + 1));
  }
  return depth;
}

function edge(link, at, upright, dim) {
  const [from, to] = [at.get(link.from), at.get(link.to)];
  const route = link.from === link.to ? loop(from) : curve(from, to, upright);
  const width = 1.4 + Math.min(5, Math.log10(1 + link.total.rate) * 2);
  const state = judge(link.total.success);
  const label = state === "failing" || state === "strained"
    ? `${rate(link.total.rate)}/s · ${percent(link.total.success)}`
    : `${rate(link.total.rate)}/s`;
  return draw(
    "g", { class: `edge ${state} ${dim ? "dim" : ""}` },
    draw("path", { d: route.path, "stroke-width": width.toFixed(1) }),
    link.total.rate > 0 ? draw("path", { class: "flow", d: route.path, "stroke-width": Math.max(1.4, width - 1).toFixed(1) }) : undefined,
    // The label stands above a line that goes across, and to the right of one that goes down.
    upright
      ? draw("text", { class: "beside", x: route.x + width / 2 + 7, y: route.y }, label)
      : draw("text", { x: route.x, y: route.y - width / 2 - 9 }, label),
  );
}

function curve(from, to, upright) {
  if (upright) {
    const [x1, y1, x2, y2] = [from.x + NODE.width / 2, from.y + NODE.height, to.x + NODE.width / 2, to.y];
    const bend = Math.max(24, Math.abs(y2 - y1) / 2);
    const near = y2 - y1 < NODE.height + GAP.along;
    return bezier([x1, y1], [x1, y1 + bend], [x2, y2 - bend], [x2, y2], near ? 0.53 : 0.2);
  }
  const [x1, y1, x2, y2] = [from.x + NODE.width, from.y + NODE.height / 2, to.x, to.y + NODE.height / 2];
  const bend = Math.max(36, Math.abs(x2 - x1) / 2);
  const near = x2 - x1 < NODE.width + GAP.along;
  return bezier([x1, y1], [x1 + bend, y1], [x2 - bend, y2], [x2, y2], near ? 0.53 : 0.2);
}

/** A curve, with the point for its label: nearer to its end, where the curves of one caller have parted. */
function bezier(a, b, c, d, t) {
  const on = (axis) => (1 - t) ** 3 * a[axis] + 3 * (1 - t) ** 2 * t * b[axis] + 3 * (1 - t) * t ** 2 * c[axis] + t ** 3 * d[axis];
  return { path: `M${a}C${b} ${c} ${d}`, x: on(0), y: on(1) + 4 };
}

/** A service that calls itself. */
function loop(at) {
  const [x, y] = [at.x + NODE.width / 2, at.y];
  return { path: `M${x - 30} ${y}C${x - 30} ${y - 22} ${x + 30} ${y - 22} ${x + 30} ${y}`, x, y: y - 8 };
}

function box(node, at, chosen, dim, choose) {
  const state = node.total.requests ? judge(node.total.success) : health(node);
  const words = detail(node);
  const element = draw(
    "g", {
      class: `node ${state} ${chosen ? "chosen" : ""} ${dim ? "dim" : ""}`, transform: `translate(${at.x} ${at.y})`,
      tabindex: 0, role: "button", "aria-pressed": String(chosen), "aria-label": `${node.name}: ${words}`, "data-node": node.id,
      onclick: () => choose(node.id),
      onkeydown: (event) => {
        if (event.key !== "Enter" && event.key !== " ") return;
        event.preventDefault();
        choose(node.id);
      },
    },
    draw("title", {}, node.id),
    draw("rect", { class: "body", width: NODE.width, height: NODE.height, rx: 9 }),
    draw("text", { class: "name", x: 12, y: 22 }, cut(node.name, 20)),
    draw("text", { class: "detail", x: 12, y: 39 }, words),
  );
  element.append(...bar(node));
  return element;
}

/** Which share each version has, as a bar along the bottom. */
function bar(node) {
  const parts = versions(node.incoming);
  const wide = NODE.width - 24;
  let x = 12;
  return parts.map(({ version, share }, index) => {
    const piece = draw(
      "rect", { class: `version-${index % 5}`, x, y: 47, width: Math.max(1, share * wide - 1), height: 4, rx: 2 },
      draw("title", {}, `${version}: ${percent(share)}`),
    );
    x += share * wide;
    return piece;
  });
}

function detail(node) {
  if (node.total.requests) return `${rate(node.total.rate)}/s · ${percent(node.total.success)}`;
  if (!node.service) return "calls only";
  const well = node.service.instances.filter((one) => one.health === "healthy" && one.liveness === "live").length;
  return `no calls · ${well} of ${node.service.instances.length} well`;
}

function health(node) {
  const all = node.service?.instances ?? [];
  return all.length && !all.some((one) => one.health === "healthy" && one.liveness === "live") ? "failing" : "";
}

function cut(text, most) {
  return text.length > most ? `${text.slice(0, most - 1)}…` : text;
}
