/** Start: who this page is for stands in the link after the #, which no server sees. */

import { contactFromJson, fromBase64url } from "mimids-client";
import { Chat } from "./chat.js";
import { Page } from "./page.js";

interface Link {
  name: string; // of the device, for what is stored here
  url: string;
  token: string;
  contacts: Record<string, unknown>[];
}

async function start(): Promise<void> {
  const status = document.querySelector("#status")!;
  if (location.hash.length < 2) {
    status.textContent = "Open the link that make chat printed for you.";
    return;
  }
  const link = JSON.parse(new TextDecoder().decode(fromBase64url(location.hash.slice(1)))) as Link;
  // One tab for each device: two would use the same keys twice.
  await navigator.locks.request(`mimids-chat ${link.name}`, { ifAvailable: true }, async (lock) => {
    if (lock === null) {
      status.textContent = "This chat is open in another tab.";
      return;
    }
    let page: Page | undefined;
    let timer: ReturnType<typeof setTimeout> | undefined;
    const showSoon = () => {
      timer ??= setTimeout(() => {
        timer = undefined;
        page?.show();
      }, 50);
    };
    const chat = await Chat.open(link.url, link.token, link.name, showSoon);
    page = new Page(chat, link.contacts.map((each) => contactFromJson(each)));
    page.show();
    Object.assign(window, { chat });
    await new Promise(() => undefined); // keep the lock while the page is open
  });
}

addEventListener("hashchange", () => location.reload()); // another link in the same tab is another device

start().catch((error: unknown) => {
  document.querySelector("#status")!.textContent = `This does not work: ${String(error)}`;
});
