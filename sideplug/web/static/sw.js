/* The page offline: its files are kept when it is installed, and served from there; files.json names them by content,
   so a new build is a new set, taken whole. */

const LIST = "files.json";

async function fresh() {
  const { version, files } = await (await fetch(LIST, { cache: "no-store" })).json();
  return { name: `sideplug-${version}`, files };
}

self.addEventListener("install", (event) =>
  event.waitUntil(
    (async () => {
      const { name, files } = await fresh();
      await (await caches.open(name)).addAll(["./", ...files]);
      await self.skipWaiting();
    })(),
  ),
);

self.addEventListener("activate", (event) =>
  event.waitUntil(
    (async () => {
      const { name } = await fresh();
      for (const other of await caches.keys()) if (other.startsWith("sideplug-") && other !== name) await caches.delete(other);
      await self.clients.claim();
    })(),
  ),
);

self.addEventListener("fetch", (event) => {
  if (event.request.method !== "GET" || new URL(event.request.url).origin !== location.origin) return;
  event.respondWith(caches.match(event.request, { ignoreSearch: true }).then((kept) => kept ?? fetch(event.request)));
});
