//! A board: devices on the left, the IOMMUs that they are behind in the middle, memory on the right.
//!
//! A line is a device's stream; its number stands where it enters the IOMMU. A device that is
//! directly on the bus has a line of its own to memory, below the IOMMUs.

use super::Shape;
use crate::canvas::{Canvas, colour, fit, fit_name, text_width};

const TOP: f64 = 34.0;
const NODE: f64 = 36.0;
const GAP: f64 = 10.0;
/// What a stream's number takes of the height of an IOMMU.
const PIN: f64 = 14.0;
/// More streams of a device into one IOMMU than these are counted, not listed.
const STREAMS_SHOWN: usize = 2;

/// A device or an IOMMU.
#[derive(Clone, Debug)]
pub struct Node {
    /// What it is called.
    pub name: String,
    /// What there is to say of it, shortly.
    pub note: String,
    /// Whether it is in use: if not, its frame is dashed.
    pub enabled: bool,
}

/// How a device gets to memory.
#[derive(Clone, Debug)]
pub enum Way {
    /// Through IOMMUs.
    Translated(Vec<Link>),
    /// Directly on the bus.
    Direct,
    /// It is not known.
    Unknown,
}

/// A device's streams into one IOMMU.
#[derive(Clone, Debug)]
pub struct Link {
    /// The IOMMU's place among the nodes.
    pub iommu: usize,
    /// The streams' numbers, as text.
    pub streams: Vec<String>,
}

/// The picture.
#[derive(Clone, Debug)]
pub struct Topology {
    /// What it shows, for those who cannot see it.
    pub label: String,
    /// The devices.
    pub devices: Vec<(Node, Way)>,
    /// The IOMMUs.
    pub iommus: Vec<Node>,
    /// What there is to say of memory, line by line.
    pub memory: Vec<String>,
}

/// A column: where it begins and how wide it is.
type Column = (f64, f64);

/// A node in its place.
struct Placed {
    y: f64,
    height: f64,
}

/// Everything in its place.
struct Plan {
    devices: Column,
    iommus: Column,
    memory: Column,
    /// The devices from the top down, and where each is, by its number.
    order: Vec<usize>,
    device_at: Vec<Placed>,
    iommu_at: Vec<Placed>,
    /// The links of each IOMMU, from the top down: device, and which of its links.
    pins: Vec<Vec<(usize, usize)>>,
    bottom: f64,
}

impl Topology {
    /// Draws it.
    pub fn svg(&self, shape: Shape) -> String {
        let plan = Plan::new(self, shape);
        let mut canvas = Canvas::new(shape.width());
        for (name, (x, width)) in [("devices", plan.devices), ("IOMMUs", plan.iommus)] {
            canvas.text((x + width / 2.0, 20.0), "middle", "strong", name);
        }
        // Its column may be narrower than its name.
        let (x, width) = plan.memory;
        canvas.text((x + width, 20.0), "end", "strong", "memory");
        self.links(&mut canvas, &plan);
        self.direct(&mut canvas, &plan);
        for (placed, (node, way)) in plan.device_at.iter().zip(&self.devices) {
            let first = match way {
                Way::Translated(links) => links.first().map(|link| link.iommu),
                Way::Direct | Way::Unknown => None,
            };
            draw(&mut canvas, placed, plan.devices, node, first, 0.0);
        }
        for (index, (placed, node)) in plan.iommu_at.iter().zip(&self.iommus).enumerate() {
            let numbers = self.numbers(&plan, index);
            let widest =
                numbers.iter().map(|(_, text)| text_width(text) + 10.0).fold(0.0, f64::max);
            draw(&mut canvas, placed, plan.iommus, node, Some(index), widest);
            for (y, text) in numbers {
                canvas.text((plan.iommus.0 + 5.0, y), "start", "mono", &text);
            }
        }
        self.memory(&mut canvas, &plan);
        canvas.count(self.devices.len() + self.iommus.len());
        canvas.finish(plan.bottom + 10.0, &self.label)
    }

    fn link(&self, (device, link): (usize, usize)) -> Option<&Link> {
        match self.devices.get(device) {
            Some((_, Way::Translated(links))) => links.get(link),
            _ => None,
        }
    }

    /// From devices to IOMMUs, and from these to memory.
    fn links(&self, canvas: &mut Canvas, plan: &Plan) {
        let right = plan.devices.0 + plan.devices.1;
        for (iommu, pins) in plan.pins.iter().enumerate() {
            let class = format!("curve stroke {}", colour(iommu));
            for (place, (device, link)) in pins.iter().enumerate() {
                let (Some(from), Some(unit)) =
                    (plan.device_at.get(*device), self.iommus.get(iommu))
                else {
                    continue;
                };
                let names = self.devices.get(*device).map(|(node, _)| &*node.name);
                let title = format!("{} to {}", names.unwrap_or_default(), unit.name);
                let from = (right, from.y + from.height / 2.0 + 4.0 * *link as f64);
                canvas.curve(from, (plan.iommus.0, plan.pin_at(iommu, place)), &class, &title);
            }
            let Some(placed) = plan.iommu_at.get(iommu).filter(|_| !pins.is_empty()) else {
                continue;
            };
            let y = placed.y + placed.height / 2.0;
            let from = (plan.iommus.0 + plan.iommus.1, y);
            canvas.curve(from, (plan.memory.0, y), &class, "");
        }
    }

    /// From devices that no IOMMU stands before, straight to memory.
    fn direct(&self, canvas: &mut Canvas, plan: &Plan) {
        let right = plan.devices.0 + plan.devices.1;
        for (placed, (node, way)) in plan.device_at.iter().zip(&self.devices) {
            let y = placed.y + placed.height / 2.0;
            let middle = plan.iommus.0 + plan.iommus.1 / 2.0;
            match way {
                Way::Direct => {
                    let title = format!("{} is directly on the bus", node.name);
                    canvas.curve((right, y), (plan.memory.0, y), "curve mark", &title);
                    canvas.text((middle, y - 4.0), "middle", "soft", "direct");
                }
                Way::Unknown => canvas.text((middle, y + 4.0), "middle", "soft", "not known"),
                Way::Translated(_) => {}
            }
        }
    }

    /// The numbers of an IOMMU's streams, where the lines enter.
    fn numbers(&self, plan: &Plan, iommu: usize) -> Vec<(f64, String)> {
        let pins = plan.pins.get(iommu).into_iter().flatten().enumerate();
        let texts = pins.filter_map(|(place, pin)| {
            let text = fit(&streams(self.link(*pin)?), plan.iommus.1 / 3.0);
            Some((plan.pin_at(iommu, place) + 4.0, text))
        });
        texts.collect()
    }

    fn memory(&self, canvas: &mut Canvas, plan: &Plan) {
        let (x, width) = plan.memory;
        let middle = (x + width / 2.0, (TOP + plan.bottom) / 2.0);
        canvas.rect((x, TOP, width, plan.bottom - TOP), "box", &self.memory.join("\n"));
        if width < 80.0 {
            let room = plan.bottom - TOP - 8.0;
            canvas.upright(
                (middle.0 + 4.0, middle.1),
                "label",
                &fit(&self.memory.join(", "), room),
            );
            return;
        }
        let line = 16.0;
        let shown = (((plan.bottom - TOP) / line) as usize).saturating_sub(1).max(1);
        let first = middle.1 - self.memory.len().min(shown) as f64 * line / 2.0 + 12.0;
        for (index, text) in self.memory.iter().take(shown).enumerate() {
            let y = first + index as f64 * line;
            canvas.text((middle.0, y), "middle", "label", &fit(text, width - 8.0));
        }
    }
}

/// `0,4`, `0,4 +7`.
fn streams(link: &Link) -> String {
    let shown = link.streams.iter().take(STREAMS_SHOWN).cloned().collect::<Vec<_>>().join(",");
    match link.streams.len().saturating_sub(STREAMS_SHOWN) {
        0 => shown,
        more => format!("{shown} +{more}"),
    }
}

/// A box with a name and a note, right of the numbers of streams.
fn draw(
    canvas: &mut Canvas,
    placed: &Placed,
    (x, width): Column,
    node: &Node,
    hue: Option<usize>,
    numbers: f64,
) {
    let class = if node.enabled { "open" } else { "open off" };
    let title = format!("{}\n{}", node.name, node.note);
    canvas.rect((x, placed.y, width, placed.height), class, &title);
    if let Some(hue) = hue {
        let edge = (x + width - 4.0, placed.y, 4.0, placed.height);
        canvas.rect(edge, &format!("fill {}", colour(hue)), "");
    }
    let (left, room) = (x + 6.0 + numbers, width - 14.0 - numbers);
    let middle = placed.y + placed.height / 2.0;
    if node.note.is_empty() {
        canvas.text((left, middle + 4.0), "start", "label", &fit_name(&node.name, room));
        return;
    }
    canvas.text((left, middle - 3.0), "start", "label", &fit_name(&node.name, room));
    canvas.text((left, middle + 12.0), "start", "soft", &fit(&node.note, room));
}

impl Plan {
    fn new(board: &Topology, shape: Shape) -> Self {
        let (devices, iommus, memory) = match shape {
            Shape::Wide => ((4.0, 250.0), (390.0, 290.0), (780.0, 176.0)),
            Shape::Narrow => ((2.0, 122.0), (166.0, 142.0), (334.0, 24.0)),
        };
        let mut pins: Vec<Vec<(usize, usize)>> = vec![Vec::new(); board.iommus.len()];
        let mut order: Vec<usize> = (0..board.devices.len()).collect();
        // Devices in the order of their IOMMUs, so that few lines cross; others below all of these.
        order.sort_by_key(|index| match board.devices.get(*index) {
            Some((_, Way::Translated(links))) => {
                links.iter().map(|link| link.iommu).min().unwrap_or(usize::MAX - 1)
            }
            _ => usize::MAX,
        });
        for device in &order {
            let Some((_, Way::Translated(links))) = board.devices.get(*device) else { continue };
            for (place, link) in links.iter().enumerate() {
                if let Some(pins) = pins.get_mut(link.iommu) {
                    pins.push((*device, place));
                }
            }
        }
        let mut plan = Self {
            devices,
            iommus,
            memory,
            order,
            device_at: Vec::new(),
            iommu_at: Vec::new(),
            pins,
            bottom: TOP,
        };
        plan.place(board);
        plan
    }

    /// Stacks both columns; direct devices come below the IOMMUs that their lines pass.
    fn place(&mut self, board: &Topology) {
        let mut y = TOP;
        for pins in &self.pins {
            let height = (pins.len() as f64 * PIN + 6.0).max(NODE);
            self.iommu_at.push(Placed { y, height });
            y += height + GAP;
        }
        let (mut below, mut next) = (y, TOP);
        self.device_at = board.devices.iter().map(|_| Placed { y: TOP, height: NODE }).collect();
        for device in &self.order {
            let translated = matches!(board.devices.get(*device), Some((_, Way::Translated(_))));
            if !translated {
                next = next.max(below);
            }
            if let Some(placed) = self.device_at.get_mut(*device) {
                placed.y = next;
            }
            next += NODE + GAP;
            below = below.max(next);
        }
        self.bottom = (below.max(next) - GAP).max(TOP + 80.0);
    }

    /// The height at which a link enters an IOMMU.
    fn pin_at(&self, iommu: usize, place: usize) -> f64 {
        let Some(placed) = self.iommu_at.get(iommu) else { return TOP };
        let count = self.pins.get(iommu).map_or(1, Vec::len).max(1);
        placed.y + placed.height * (place as f64 + 0.5) / count as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str) -> Node {
        Node { name: name.into(), note: "note".into(), enabled: name != "off" }
    }

    fn link(iommu: usize, streams: usize) -> Link {
        Link { iommu, streams: (0..streams).map(|stream| stream.to_string()).collect() }
    }

    #[test]
    fn every_stream_has_a_line_and_every_iommu_in_use_one_to_memory() {
        let board = Topology {
            label: "<board>".into(),
            devices: vec![
                (node("direct"), Way::Direct),
                (node("b"), Way::Translated(vec![link(1, 1), link(0, 5)])),
                (node("a"), Way::Translated(vec![link(0, 1)])),
                (node("off"), Way::Unknown),
                // An IOMMU that is not there is no reason to panic.
                (node("c"), Way::Translated(vec![link(9, 1)])),
            ],
            iommus: vec![node("zero"), node("one"), node("off")],
            memory: vec!["8 GiB at 0".into()],
        };
        for shape in [Shape::Wide, Shape::Narrow] {
            let svg = board.svg(shape);
            assert_eq!(svg.matches("<path").count(), 3 + 2 + 1, "{svg}");
            assert!(svg.contains("aria-label=\"&lt;board&gt;\" data-points=\"8\""), "{svg}");
            assert!(svg.contains(">0,1 +3<") && svg.matches("open off").count() == 2, "{svg}");
        }
        let plan = Plan::new(&board, Shape::Wide);
        let lowest =
            plan.iommu_at.iter().map(|placed| placed.y + placed.height).fold(0.0, f64::max);
        assert!(
            plan.device_at[0].y > lowest,
            "the line of a direct device passes below the IOMMUs"
        );
    }

    #[test]
    fn an_empty_board_is_a_picture_too() {
        let board = Topology {
            label: String::new(),
            devices: Vec::new(),
            iommus: Vec::new(),
            memory: Vec::new(),
        };
        assert!(board.svg(Shape::Wide).ends_with("</svg>\n"));
    }
}
