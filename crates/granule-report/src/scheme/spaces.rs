//! A buffer in physical memory, the address space of each device beside it, bands between.
//!
//! Not to scale: a buffer of megabytes in a space of gigabytes would be a hair. Low addresses are on
//! top.

use super::Shape;
use crate::canvas::{Canvas, colour, fit, fit_name};

const MARGIN: f64 = 12.0;
/// The title, if there is one.
const TITLE: f64 = 24.0;
const HEAD: f64 = 22.0;
/// A device's panel with the gap below it.
const PANEL: f64 = 222.0;
/// The frame of its space, below its name and its way.
const SPACE: f64 = 166.0;
const SPACE_TOP: f64 = 36.0;
/// The buffer in it.
const BUFFER: f64 = 84.0;
const BUFFER_TOP: f64 = SPACE_TOP + 42.0;
const GUARD: f64 = 6.0;
const BLOCK: f64 = 40.0;
const GAP: f64 = 12.0;
/// What stands above the blocks in memory, and below them.
const AROUND: f64 = 60.0;
/// More blocks than these are drawn as one.
const BLOCKS_SHOWN: usize = 8;

/// A block of physical memory that is part of the buffer.
#[derive(Clone, Debug)]
pub struct Block {
    /// Its address, as text.
    pub address: String,
    /// Its size, as text.
    pub size: String,
    /// Its size in bytes.
    pub len: u64,
}

/// Physical memory.
#[derive(Clone, Debug)]
pub struct Memory {
    /// Where it begins, as text.
    pub first: String,
    /// Where it ends, as text.
    pub last: String,
    /// What the blocks are in a few words.
    pub shape: String,
    /// The buffer's blocks, in its order.
    pub blocks: Vec<Block>,
}

/// A device's address space.
#[derive(Clone, Debug)]
pub struct Space {
    /// The device.
    pub name: String,
    /// Its way to memory.
    pub way: String,
    /// The lowest address that it can be given, as text.
    pub first: String,
    /// The highest, as text.
    pub last: String,
    /// Where it sees the buffer.
    pub address: String,
    /// What there is to say of it: three short lines at most.
    pub notes: Vec<String>,
    /// Whether the granules around the buffer fault.
    pub guarded: bool,
}

/// The picture.
#[derive(Clone, Debug)]
pub struct Spaces {
    /// What it shows, for those who cannot see it.
    pub label: String,
    /// What stands above it, if anything.
    pub title: Option<String>,
    /// The memory in the middle.
    pub memory: Memory,
    /// The devices beside it.
    pub devices: Vec<Space>,
}

/// Where a device's panel is.
struct Panel<'s> {
    space: &'s Space,
    left: bool,
    x: f64,
    y: f64,
    width: f64,
    colour: &'static str,
}

/// A drawn block, or several.
struct Piece {
    y: f64,
    offset: u64,
    len: u64,
    label: [String; 2],
}

/// Where things are in a shape.
struct Layout {
    shape: Shape,
    top: f64,
    panel: f64,
    memory: (f64, f64),
}

impl Layout {
    fn new(shape: Shape, titled: bool) -> Self {
        let (panel, memory) = match shape {
            Shape::Wide => (290.0, (380.0, 200.0)),
            Shape::Narrow => (196.0, (240.0, 116.0)),
        };
        Self { shape, top: HEAD + if titled { TITLE } else { 0.0 }, panel, memory }
    }

    /// On a phone all devices are on one side.
    fn rows(&self, devices: usize) -> f64 {
        match self.shape {
            Shape::Wide => devices.div_ceil(2) as f64,
            Shape::Narrow => devices as f64,
        }
    }

    fn panels<'s>(&self, devices: &'s [Space]) -> Vec<Panel<'s>> {
        let panel = |(index, space)| {
            let (left, row) = match self.shape {
                Shape::Wide => (index % 2 == 0, index / 2),
                Shape::Narrow => (true, index),
            };
            let far = self.shape.width() - MARGIN - self.panel;
            let x = match (self.shape, left) {
                (Shape::Narrow, _) => 4.0,
                (Shape::Wide, true) => MARGIN,
                (Shape::Wide, false) => far,
            };
            let y = self.top + row as f64 * PANEL;
            Panel { space, left, x, y, width: self.panel, colour: colour(index) }
        };
        devices.iter().enumerate().map(panel).collect()
    }
}

impl Spaces {
    /// Draws it.
    pub fn svg(&self, shape: Shape) -> String {
        let layout = Layout::new(shape, self.title.is_some());
        let top = layout.top;
        let mut canvas = Canvas::new(shape.width());
        let stack = self.stack();
        let body = (layout.rows(self.devices.len()) * PANEL - 20.0).max(stack + 2.0 * AROUND);
        let pieces = self.pieces(top + (body - stack) / 2.0);
        if let Some(title) = &self.title {
            let title = fit(title, shape.width() - 2.0 * MARGIN);
            canvas.text((MARGIN, 18.0), "start", "strong", &title);
        }
        self.memory(&mut canvas, &layout, body, &pieces);
        let panels = layout.panels(&self.devices);
        for panel in &panels {
            bands(&mut canvas, &layout, panel, &pieces);
        }
        for piece in &pieces {
            block(&mut canvas, &layout, piece);
        }
        panels.iter().for_each(|panel| panel.draw(&mut canvas));
        let foot = top + body + 22.0;
        canvas.rect((MARGIN, foot - 9.0, 10.0, GUARD), "guard", "");
        canvas.text((MARGIN + 16.0, foot), "start", "soft", "unmapped granules: they fault");
        let end = (shape.width() - MARGIN, foot + if shape == Shape::Narrow { 16.0 } else { 0.0 });
        canvas.text(end, "end", "soft", "low addresses on top, not to scale");
        canvas.finish(end.1 + 12.0, &self.label)
    }

    fn shown(&self) -> usize {
        self.memory.blocks.len().min(BLOCKS_SHOWN)
    }

    /// How tall the blocks are together.
    fn stack(&self) -> f64 {
        self.shown().max(1) as f64 * (BLOCK + GAP) - GAP
    }

    /// The blocks from `top` down; the last one stands for all that are too many.
    fn pieces(&self, top: f64) -> Vec<Piece> {
        let (blocks, count) = (&self.memory.blocks, self.shown());
        let all: u64 = blocks.iter().map(|block| block.len).fold(0, u64::saturating_add);
        let mut offset = 0;
        let mut pieces = Vec::with_capacity(count);
        for (index, block) in blocks.iter().take(count).enumerate() {
            let rest = if index + 1 == count { blocks.len() - count } else { 0 };
            let (len, second) = match rest {
                0 => (block.len, block.size.clone()),
                rest => (all.saturating_sub(offset), format!("and {rest} more")),
            };
            let y = top + index as f64 * (BLOCK + GAP);
            pieces.push(Piece { y, offset, len, label: [block.address.clone(), second] });
            offset = offset.saturating_add(len);
        }
        pieces
    }

    fn memory(&self, canvas: &mut Canvas, layout: &Layout, body: f64, pieces: &[Piece]) {
        let (x, width) = layout.memory;
        let middle = x + width / 2.0;
        let Memory { first, last, shape, .. } = &self.memory;
        canvas.text((middle, layout.top - 6.0), "middle", "strong", "physical memory");
        canvas.rect((x, layout.top + 2.0, width, body - 4.0), "box", "");
        canvas.text((middle, layout.top + 20.0), "middle", "soft", &fit(first, width));
        canvas.text((middle, layout.top + body - 12.0), "middle", "soft", &fit(last, width));
        if let Some(piece) = pieces.first() {
            canvas.text((middle, piece.y - 8.0), "middle", "soft", &fit(shape, width));
        }
    }
}

fn block(canvas: &mut Canvas, layout: &Layout, piece: &Piece) {
    let (x, width) = layout.memory;
    let middle = x + width / 2.0;
    let [address, size] = &piece.label;
    canvas.rect((x + 8.0, piece.y, width - 16.0, BLOCK), "open", "");
    canvas.text((middle, piece.y + 17.0), "middle", "mono", &fit(address, width - 16.0));
    canvas.text((middle, piece.y + 32.0), "middle", "soft", &fit(size, width - 16.0));
}

/// From where a device sees the buffer to where it lies.
fn bands(canvas: &mut Canvas, layout: &Layout, panel: &Panel<'_>, pieces: &[Piece]) {
    let total: u64 = pieces.iter().map(|piece| piece.len).fold(0, u64::saturating_add);
    let top = panel.y + BUFFER_TOP;
    let at = |offset: u64| top + offset as f64 / total.max(1) as f64 * BUFFER;
    let (x, width) = layout.memory;
    let (near, far) =
        if panel.left { (panel.x + panel.width, x + 8.0) } else { (panel.x, x + width - 8.0) };
    for piece in pieces {
        let from = (near, at(piece.offset), at(piece.offset.saturating_add(piece.len)));
        let to = (far, piece.y, piece.y + BLOCK);
        canvas.band(from, to, &format!("fill pale {}", panel.colour));
        canvas.count(1);
    }
}

impl Panel<'_> {
    fn draw(&self, canvas: &mut Canvas) {
        let Self { space, x, y, width, .. } = *self;
        let (middle, room) = (x + width / 2.0, width - 8.0);
        canvas.text((x, y + 10.0), "start", "strong", &fit_name(&space.name, room));
        canvas.text((x, y + 26.0), "start", "soft", &fit(&space.way, room));
        canvas.rect((x, y + SPACE_TOP, width, SPACE), "box", "");
        let mut line = |at: f64, class: &str, text: &str| {
            canvas.text((middle, y + at), "middle", class, &fit(text, room));
        };
        line(SPACE_TOP + 18.0, "soft", &space.first);
        line(SPACE_TOP + SPACE - 10.0, "soft", &space.last);
        let top = y + BUFFER_TOP;
        if space.guarded {
            canvas.rect((x, top - GUARD, width, GUARD), "guard", "unmapped: faults");
            canvas.rect((x, top + BUFFER, width, GUARD), "guard", "unmapped: faults");
        }
        canvas.rect((x, top, width, BUFFER), &format!("fill half {}", self.colour), &space.name);
        canvas.text((middle, top + 20.0), "middle", "mono", &fit(&space.address, room));
        for (index, note) in space.notes.iter().take(3).enumerate() {
            let y = top + 38.0 + 17.0 * index as f64;
            canvas.text((middle, y), "middle", "label", &fit(note, room));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture(devices: usize, blocks: u64) -> Spaces {
        let space = |index| Space {
            name: format!("device {index}"),
            way: "iommu:0".into(),
            first: "from 0".into(),
            last: "to 9".into(),
            address: "0x1000".into(),
            notes: vec!["8 MiB".into(), "blocked".into()],
            guarded: true,
        };
        let block =
            |index| Block { address: format!("{index:#x}"), size: "1 B".into(), len: u64::MAX / 4 };
        Spaces {
            label: "a < b".into(),
            title: (devices > 1).then(|| "c & d".into()),
            memory: Memory {
                first: "RAM from 0".into(),
                last: "to 9".into(),
                shape: "blocks".into(),
                blocks: (0..blocks).map(block).collect(),
            },
            devices: (0..devices).map(space).collect(),
        }
    }

    #[test]
    fn every_device_has_a_band_to_every_block() {
        for shape in [Shape::Wide, Shape::Narrow] {
            let svg = picture(3, 2).svg(shape);
            assert!(svg.contains("data-points=\"6\"") && svg.contains("\"a &lt; b\""), "{svg}");
            assert!(svg.contains(">c &amp; d<"), "{svg}");
            assert_eq!((svg.matches("<path").count(), svg.matches("guard").count()), (6, 7));
            // Blocks that are too many are one, and sums of lengths do not overflow.
            let many = picture(1, 50).svg(shape);
            assert!(many.contains("and 42 more") && many.matches("<path").count() == 8, "{many}");
            assert!(picture(0, 0).svg(shape).ends_with("</svg>\n"));
        }
    }
}
