// Double-clickjacking: a window that closes between two clicks lets the second one land on this button. So it rests
// until the page has been in front for a moment. It rests after a press too, for a second press would start twice.
const form = document.forms[0];
const button = form.querySelector("button");
let waking;

function rest(milliseconds) {
  clearTimeout(waking);
  button.setAttribute("aria-disabled", "true"); // not `disabled`, which would take the keyboard focus away
  waking = setTimeout(() => button.removeAttribute("aria-disabled"), milliseconds);
}

form.addEventListener("submit", (event) => {
  if (button.hasAttribute("aria-disabled")) event.preventDefault();
  else rest(5000);
});
addEventListener("focus", () => rest(500));
addEventListener("pageshow", () => rest(500));
rest(500);
