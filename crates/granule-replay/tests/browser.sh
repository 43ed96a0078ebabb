#!/bin/sh
# Looks at the report in headless Chromium: it renders, every plot has data and a size, nothing
# overflows the page, the console is silent; light and dark, desktop and phone. Screenshots are kept.
#
#   crates/granule-replay/tests/browser.sh [DIRECTORY FOR SCREENSHOTS]
#
# Needs Debian's `chromium`. Uses $CARGO_TARGET_DIR, and builds the example if it must.
set -eu
cd "$(dirname "$0")/../../.."
out=$(realpath -m "${1:-${CARGO_TARGET_DIR:-target}/report}")
mkdir -p "$out"
browser=$(command -v chromium || command -v chromium-browser || command -v google-chrome) || {
  echo "browser.sh: no Chromium: apt-get install chromium" >&2
  exit 1
}
profile=$(mktemp -d)
trap 'rm -rf "$profile"' EXIT

chrome() {
  timeout 60 "$browser" --headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage \
    --disable-background-networking --hide-scrollbars --user-data-dir="$profile" \
    --enable-logging=stderr "$@"
}

fail() {
  echo "browser.sh: $*" >&2
  exit 1
}

# What the page says of itself: put into a copy, whose policy against scripts is taken out.
measure='<script>
addEventListener("load", () => {
  const wrong = [];
  const plots = document.querySelectorAll("svg.plot");
  for (const plot of plots) {
    const name = plot.getAttribute("aria-label"), box = plot.getBoundingClientRect();
    if (!(Number(plot.dataset.points) > 0)) wrong.push(name + ": no data");
    if (box.width < 200 || box.height < 40) wrong.push(name + ": " + box.width + "x" + box.height);
    const shapes = plot.querySelectorAll("polyline, rect.fill, rect.heat");
    if (![...shapes].some(shape => shape.getBBox().width > 0)) wrong.push(name + ": nothing drawn");
    for (const text of plot.querySelectorAll("text")) {
      const place = text.getBoundingClientRect();
      if (place.left < box.left - 1 || place.right > box.right + 1)
        wrong.push(name + ": `" + text.textContent + "` leaves the picture");
    }
  }
  if (plots.length < Number("PLOTS")) wrong.push("only " + plots.length + " plots");
  const over = document.documentElement.scrollWidth - innerWidth;
  if (over > 0) wrong.push("the page is " + over + " px too wide");
  if (!document.querySelector("table td")) wrong.push("no table");
  document.title = wrong.length ? "WRONG " + wrong.join("; ") : "RIGHT " + plots.length + " plots";
});
</script>'

check() { # page, least number of plots
  page=$1
  name=$(basename "$page" .html)
  copy=$out/$name.measured.html
  script=$(printf '%s' "$measure" | sed "s/PLOTS/$2/")
  { sed '/Content-Security-Policy/d' "$page"; printf '%s\n' "$script"; } >"$copy"
  for scheme in 1-light 0-dark; do
    for width in 1200 400; do
      what="$name-${scheme#*-}-$width"
      blink="--blink-settings=preferredColorScheme=${scheme%-*}"
      chrome "$blink" --window-size=$width,1600 --screenshot="$out/$what.png" "file://$page" \
        >"$out/$what.log" 2>&1 || fail "$what: Chromium failed, see $out/$what.log"
      [ "$(stat -c %s "$out/$what.png")" -gt 20000 ] || fail "$what: the screenshot is empty"
      if grep CONSOLE "$out/$what.log" >&2; then fail "$what: the console has messages"; fi
      title=$(chrome "$blink" --window-size=$width,1600 --dump-dom "file://$copy" 2>/dev/null |
        sed -n 's/.*<title>\(.*\)<\/title>.*/\1/p' | head -n 1)
      case $title in
        RIGHT*) echo "$what: ${title#RIGHT }" ;;
        *) fail "$what: $title" ;;
      esac
    done
  done
  rm "$copy"
}

cargo build --quiet --example replay -p granule-replay
replay=${CARGO_TARGET_DIR:-target}/debug/examples/replay
"$replay" sample strict trusted "$out/strict.html" >/dev/null
"$replay" sample deferred untrusted "$out/deferred-untrusted.html" >/dev/null
check "$out/strict.html" 10
check "$out/deferred-untrusted.html" 11
echo "screenshots in $out"
