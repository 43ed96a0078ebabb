#!/bin/sh
# Looks at the reports of `granule replay`, `share` and `board` in headless Chromium: each renders,
# every picture has data and a size, no text leaves its picture, nothing overflows the page, the
# console is silent; light and dark, on a desk and on a phone. Screenshots are kept.
#
#   crates/granule-report/tests/browser.sh [DIRECTORY FOR SCREENSHOTS]
#
# Needs Debian's `chromium`. Uses $CARGO_TARGET_DIR, and builds the command if it must.
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
  timeout 120 "$browser" --headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage \
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
  // A picture may be there in two shapes, of which one is shown.
  const plots = [...document.querySelectorAll("svg.plot")].filter(plot => plot.getClientRects().length);
  for (const plot of plots) {
    const name = plot.getAttribute("aria-label"), box = plot.getBoundingClientRect();
    if (!(Number(plot.dataset.points) > 0)) wrong.push(name + ": no data");
    if (box.width < 200 || box.height < 40) wrong.push(name + ": " + box.width + "x" + box.height);
    const shapes = plot.querySelectorAll("polyline, path, rect.fill, rect.heat");
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
  console.log(wrong.length ? "WRONG " + wrong.join("; ") : "RIGHT " + plots.length + " plots");
});
</script>'

check() { # name of the page, least number of plots that are shown
  page=$out/$1.html
  copy=$out/$1.measured.html
  log=$out/$1.log
  # As it is: its own policy must not be against any of it.
  chrome --dump-dom "file://$page" 2>"$log" >"$out/$1.dom" || fail "$1: Chromium failed, see $log"
  grep -q '</footer>' "$out/$1.dom" || fail "$1: the page is not whole"
  if grep CONSOLE "$log" >&2; then fail "$1: the console has messages"; fi
  script=$(printf '%s' "$measure" | sed "s/PLOTS/$2/")
  { sed '/Content-Security-Policy/d' "$page"; printf '%s\n' "$script"; } >"$copy"
  for scheme in 1-light 0-dark; do
    for width in 1200 400; do
      what="$1-${scheme#*-}-$width"
      chrome --blink-settings=preferredColorScheme="${scheme%-*}" --window-size=$width,1600 \
        --screenshot="$out/$what.png" "file://$copy" >"$log" 2>&1 ||
        fail "$what: Chromium failed, see $log"
      [ "$(stat -c %s "$out/$what.png")" -gt 20000 ] || fail "$what: the screenshot is empty"
      said=$(sed -n 's/.*CONSOLE[^"]*"\(.*\)", source.*/\1/p' "$log")
      case $said in
        "RIGHT "*plots) echo "$what: ${said#RIGHT }" ;;
        *) fail "$what: ${said:-the page says nothing of itself, see $log}" ;;
      esac
    done
  done
  rm "$copy" "$log" "$out/$1.dom"
}

cargo build --quiet -p granule-cli
granule=${CARGO_TARGET_DIR:-target}/debug/granule
"$granule" replay --report "$out/replay.html" >/dev/null
"$granule" replay --invalidate deferred --untrusted all --report "$out/untrusted.html" >/dev/null
"$granule" share --report "$out/share.html" >/dev/null
"$granule" share --between dcp,display-subsystem,isp,direct-master,nvme --size 100K \
  --report "$out/share-five.html" >/dev/null
"$granule" board --report "$out/board.html" >/dev/null
check replay 10
check untrusted 11
check share 1
check share-five 1
check board 1
echo "screenshots in $out"
