/* Runs on pages with widgets only, before RequireJS, the theme's icons and MathJax.
   It lets the widget manager work from local files, beside the theme, and for screen readers. */
(() => {
  "use strict";
  const vendor = new URL("vendor/", document.currentScript.src).href;

  // The manager looks for its icon fonts beside the address that RequireJS gives each bundled module.
  const modules = {
    "@jupyter-widgets/base": "base",
    "@jupyter-widgets/controls": "controls",
    "@jupyter-widgets/base7": "base7",
    "@jupyter-widgets/controls7": "controls7",
    "@jupyter-widgets/html-manager": "html-manager",
    "@jupyter-widgets/html-manager/dist/libembed-amd": "libembed-amd",
  };
  const paths = {};
  for (const [module, file] of Object.entries(modules)) paths[module] = vendor + file;
  window.require = { paths };

  // The theme's FontAwesome turns <i> into <svg> whenever the page changes. A widget that then looks for its <i>
  // throws, and every link behind it stops. Once, for the theme's own icons, is enough.
  window.FontAwesomeConfig = { observeMutations: false };

  // For each description the manager calls MathJax 2's queue, which MathJax 3 does not have.
  let mathjax = window.MathJax;
  const withQueue = (value) => {
    if (value && !value.Hub) Object.defineProperty(value, "Hub", { value: { Queue() {} } });
    return value;
  };
  Object.defineProperty(window, "MathJax", {
    configurable: true,
    get: () => mathjax,
    set: (value) => { mathjax = withQueue(value); },
  });

  // Slider handles come without a name, and say a position in the list instead of the value that stands there.
  const set = (element, attribute, value) => {
    if (value && element.getAttribute(attribute) !== value) element.setAttribute(attribute, value);
  };
  const nameHandles = () => {
    for (const handle of document.querySelectorAll(".jupyter-widgets .noUi-handle")) {
      const widget = handle.closest(".widget-inline-hbox");
      set(handle, "aria-label", widget?.querySelector(".widget-label")?.textContent);
      set(handle, "aria-valuetext", widget?.querySelector(".widget-readout")?.textContent);
    }
  };
  const watched = { childList: true, subtree: true, attributes: true, attributeFilter: ["aria-valuetext"] };
  new MutationObserver(nameHandles).observe(document.documentElement, watched);
})();
