// Everything axe finds on this page, light and dark, as "rule: where (why)"; run by Selenium, after axe itself.
const done = arguments[arguments.length - 1];
const MODES = ["light", "dark"];
const serious = ({violations}) => violations.filter(({impact}) => ["serious", "critical"].includes(impact));
const lines = (violation) => violation.nodes.map(({target, any}) =>
  `${violation.id}: ${target.join(" ")} (${any.length ? any[0].message : violation.help})`);
const show = (mode) => { document.documentElement.dataset.theme = mode; };

document.head.append(Object.assign(document.createElement("style"), {textContent: "* {transition: none !important}"}));

const wait = (milliseconds) => new Promise((resolve) => { setTimeout(resolve, milliseconds); });
const unfold = async () => {
  document.querySelectorAll("details").forEach((box) => { box.open = true; });
  const folded = document.querySelectorAll(".toggle-hidden button.toggle-button");
  if (!folded.length) return;
  const resized = new Promise((resolve) => { addEventListener("resize", resolve); });
  folded.forEach((button) => { button.click(); });
  // The theme looks what scrolls, 300 milliseconds after it is told that something has changed.
  await Promise.race([resized, wait(5000)]);
  await wait(1000);
};

// Axe looks at each word's contrast for itself, which takes minutes where there is code. Of text in one colour and
// size on one ground it gets to see the first.
const kept = new Set();
const keepOneOfEach = () => {
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
};

// With preload axe would ask for style sheets at wrong addresses.
const options = {preload: false, resultTypes: ["violations"]};
(async () => {
  await unfold();
  keepOneOfEach();
  const found = [];
  for (const mode of MODES) {
    show(mode);
    const results = await axe.run({include: [...kept]}, {...options, runOnly: ["color-contrast"]});
    found.push(...serious(results).flatMap(lines).map((line) => `${mode}: ${line}`));
  }
  const others = await axe.run({...options, rules: {"color-contrast": {enabled: false}}});
  found.push(...serious(others).flatMap(lines));
  done([kept.size, found]);
})();
