// Everything axe finds on this page, light and dark, as "rule: where (why)"; run by Selenium, after axe itself.
const done = arguments[arguments.length - 1];
const MODES = ["light", "dark"];
const serious = ({violations}) => violations.filter(({impact}) => ["serious", "critical"].includes(impact));
const lines = (violation) => violation.nodes.map(({target, any}) =>
  `${violation.id}: ${target.join(" ")} (${any.length ? any[0].message : violation.help})`);
const show = (mode) => { document.documentElement.dataset.theme = mode; };

document.querySelectorAll("details").forEach((box) => { box.open = true; });
document.querySelectorAll(".toggle-hidden").forEach((box) => { box.classList.remove("toggle-hidden"); });
document.head.append(Object.assign(document.createElement("style"), {textContent: "* {transition: none !important}"}));

// Axe looks at each word's contrast for itself, which takes minutes where there is code. Of text in one colour and
// size on one ground it gets to see the first.
const kept = new Set();
for (const mode of MODES) {
  show(mode);
  const grounds = new Map([[document, ""]]), looks = new Set();
  const ground = (element) => {
    if (!grounds.has(element)) {
      const {backgroundColor, backgroundImage, opacity, filter} = getComputedStyle(element);
      const own = `${backgroundColor} ${backgroundImage} ${opacity} ${filter}/`;
      grounds.set(element, ground(element.parentNode) + (own === "rgba(0, 0, 0, 0) none 1 none/" ? "" : own));
    }
    return grounds.get(element);
  };
  for (const element of document.body.querySelectorAll("*")) {
    const text = [...element.childNodes].some((node) => node.nodeType === Node.TEXT_NODE && node.data.trim());
    if (!text || !element.checkVisibility()) continue;
    const {color, fontSize, fontWeight, textShadow} = getComputedStyle(element);
    const look = [ground(element), color, fontSize, fontWeight, textShadow].join();
    if (!looks.has(look)) kept.add(element);
    looks.add(look);
  }
}
const holds = (element) => kept.has(element) || [...element.querySelectorAll("*")].some((inner) => kept.has(inner));
for (const element of document.querySelectorAll("pre span, mjx-container > *"))
  if (element.isConnected && !element.id && !element.querySelector("a") && !holds(element))
    element.replaceWith(element.textContent);

(async () => {
  const found = [];
  for (const mode of MODES) {
    show(mode);
    const contrast = {runOnly: ["color-contrast"], resultTypes: ["violations"]};
    const results = await axe.run({include: [...kept]}, contrast);
    found.push(...serious(results).flatMap(lines).map((line) => `${mode}: ${line}`));
  }
  const others = {rules: {"color-contrast": {enabled: false}}, resultTypes: ["violations"]};
  found.push(...serious(await axe.run(others)).flatMap(lines));
  done([kept.size, found]);
})();
