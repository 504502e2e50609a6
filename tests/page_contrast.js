// Run in the page: how many texts were seen, and those whose contrast is below 4.5 : 1 (WCAG 2.2, 1.4.3).
() => {
  const parse = (text) => {
    const [red, green, blue, alpha = 1] = text.match(/[\d.]+/g).map(Number);
    return [red, green, blue, alpha];
  };
  const over = (top, under) => [0, 1, 2].map((at) => top[at] * top[3] + under[at] * (1 - top[3]));
  const linear = (one) => (one / 255 <= 0.04045 ? one / 255 / 12.92 : ((one / 255 + 0.055) / 1.055) ** 2.4);
  const light = (colour) => 0.2126 * linear(colour[0]) + 0.7152 * linear(colour[1]) + 0.0722 * linear(colour[2]);
  const behind = (node) => {
    const grounds = [];
    for (let at = node; at; at = at.parentElement) grounds.push(parse(getComputedStyle(at).backgroundColor));
    return grounds.reverse().reduce((under, top) => over(top, under), [255, 255, 255]);
  };
  const poor = [];
  let seen = 0;
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const [text, node] = [walker.currentNode.textContent.trim(), walker.currentNode.parentElement];
    if (!text || !node.checkVisibility() || node.closest(".unseen, option, noscript, svg, .skip")) continue;
    const ground = behind(node);
    const [high, low] = [light(over(parse(getComputedStyle(node).color), ground)), light(ground)].sort((a, b) => b - a);
    seen += 1;
    const ratio = (high + 0.05) / (low + 0.05);
    if (ratio < 4.5) poor.push(`${node.className} "${text.slice(0, 30)}" ${ratio.toFixed(2)}`);
  }
  return [seen, poor];
};
