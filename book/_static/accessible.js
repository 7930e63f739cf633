// What the extensions write is mended here for those who have a page read to them.
document.addEventListener("DOMContentLoaded", () => {
  // A list has items. The role of an entry in a bibliography is no longer one, and never was an item's.
  document.querySelectorAll('[role="list"] > [role="doc-biblioentry"]').forEach((entry) => {
    entry.setAttribute("role", "listitem");
  });
  // All exercises of a page share one id, all proofs another. Nothing refers to them.
  document.querySelectorAll("#exercise-content, #solution-content, #proof-content").forEach((part) => {
    part.removeAttribute("id");
  });
});
// The theme lets keys scroll what is too wide, but looks for that only when a page opens and when its size changes:
// what a click unfolds counts as that.
document.addEventListener("click", ({target}) => {
  if (target.closest(".admonition.toggle")) setTimeout(() => dispatchEvent(new Event("resize")));
});
