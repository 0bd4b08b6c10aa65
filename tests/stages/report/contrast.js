/* [texts seen, those whose contrast with what lies under them is less than WCAG AA asks for: 4.5, or 3
   where they are large]. The body of a function, run in the page. */
const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
function rgba(colour) {
  canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
  const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data; return [r, g, b, a / 255];
}
function light([r, g, b]) {
  const [x, y, z] = [r, g, b].map((v) => (v /= 255) <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
  return .2126 * x + .7152 * y + .0722 * z;
}
function over(top, under) {
  return [0, 1, 2].map((k) => top[k] * top[3] + under[k] * (1 - top[3])).concat(1);
}
function ground(node) {
  const above = [];
  for (let at = node; at; at = at.parentElement) above.push(rgba(getComputedStyle(at).backgroundColor));
  const page = matchMedia("(prefers-color-scheme: dark)").matches ? [0, 0, 0, 1] : [255, 255, 255, 1];
  return above.reverse().reduce((under, top) => over(top, under), page);
}
/* the last rectangle of a chart that lies under a text of it */
function beneath(node, under) {
  const at = node.getBoundingClientRect(), x = at.x + at.width / 2, y = at.y + at.height / 2;
  return Array.from(node.closest("svg").querySelectorAll("rect")).reduce((ground, rect) => {
    const box = rect.getBoundingClientRect(), style = getComputedStyle(rect);
    if (x < box.left || x > box.right || y < box.top || y > box.bottom) return ground;
    const [r, g, b, a] = rgba(style.fill);
    return over([r, g, b, a * style.fillOpacity * style.opacity], ground);
  }, under);
}
const poor = new Map(); let seen = 0;
const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walk.nextNode()) {
  const node = walk.currentNode.parentElement, text = walk.currentNode.textContent.trim();
  if (!text || !node.checkVisibility() || node.closest("script, style, option, title, :disabled")) continue;
  const style = getComputedStyle(node), svg = node.namespaceURI.endsWith("svg");
  const under = svg ? beneath(node, ground(node.closest("svg").parentElement)) : ground(node);
  const ink = over(rgba(svg ? style.fill : style.color), under);
  const [high, low] = [light(ink), light(under)].sort((a, b) => b - a);
  const size = parseFloat(style.fontSize), bold = Number(style.fontWeight) >= 700;
  const least = size >= 24 || (size >= 18.66 && bold) ? 3 : 4.5;
  seen += 1;
  if ((high + .05) / (low + .05) < least) {
    poor.set(node.tagName + "." + (node.className.baseVal ?? node.className), text.slice(0, 30) + " " + ((high + .05) / (low + .05)).toFixed(2));
  }
}
return [seen, Array.from(poor)];
