// A page that is dark on the screen is light on paper, where a dark one would be unreadable or a waste of ink.
(() => {
  "use strict";
  const page = document.documentElement;
  let onScreen;
  addEventListener("beforeprint", () => {
    onScreen = page.dataset.theme;
    page.dataset.theme = "light";
  });
  addEventListener("afterprint", () => {
    page.dataset.theme = onScreen;
  });
})();
