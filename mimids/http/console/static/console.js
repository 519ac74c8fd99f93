// Replaces the live parts of the page by newer ones every few seconds, while somebody can see them.
"use strict";

const SECONDS = 5;

function isInUse(part) {
  const selection = document.getSelection();
  return (part.contains(document.activeElement) && document.activeElement !== part)
    || (selection !== null && !selection.isCollapsed);
}

async function refresh() {
  if (document.hidden) return;
  const answer = await fetch(location.href, { headers: { "Mimids-Refresh": "1" } }).catch(() => null);
  if (answer === null || !answer.ok || answer.url !== location.href.split("#")[0]) return;
  const newer = new DOMParser().parseFromString(await answer.text(), "text/html");
  for (const part of document.querySelectorAll("[data-live]")) {
    const other = newer.getElementById(part.id);
    if (other !== null && other.innerHTML !== part.innerHTML && !isInUse(part)) {
      part.replaceChildren(...other.childNodes);
    }
  }
}

if (document.querySelector("[data-live]") !== null) setInterval(refresh, SECONDS * 1000);
