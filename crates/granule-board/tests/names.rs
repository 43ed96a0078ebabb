//! Finding devices and IOMMUs by name.

mod common;

use common::{iommu, node, root, soc};
use granule_board::{Board, LookupError};

fn board() -> Board {
    let device = |name: &str, id| node(name).cells("iommus", &[1, id]);
    let mut blob = root()
        .with(
            node("aliases")
                .strings("usb0", &["/soc/usb@1000"])
                .strings("mmc", &["/soc/usb@2000"])
                .strings("gone", &["/soc/nothing"]),
        )
        .with(
            node("labels-here")
                .strings("dwc3", &["/soc/usb@2000"])
                .strings("dart0", &["/iommu@1000"]),
        )
        .with(node("reserved-memory").with(node("framebuffer@9000")))
        .with(iommu(0x1000, "apple,t8103-dart", 1, 1))
        .with(
            soc()
                .with(device("usb@1000", 0))
                .with(device("usb@2000", 1))
                .with(device("mmc@3000", 2))
                .with(device("isp@4000", 3))
                .with(device("isp@5000", 4).strings("status", &["disabled"]))
                .with(node("serial@6000").cells("reg", &[0, 0x6000, 0, 1])),
        )
        .blob();
    // The writer refuses the name that dtc gives to the node of labels.
    let at = blob.windows(11).position(|name| name == b"labels-here").expect("the node");
    blob[at..at + 11].copy_from_slice(b"__symbols__");
    Board::from_dtb(&blob).expect("a well-formed tree")
}

fn path(board: &Board, name: &str) -> String {
    board.device(name).map(|device| device.path.clone()).unwrap_or_else(|error| error.to_string())
}

#[test]
fn path_alias_label_and_node_name() {
    let board = board();
    for name in ["/soc/usb@1000", "usb0", "usb@1000"] {
        assert_eq!(path(&board, name), "/soc/usb@1000");
    }
    assert_eq!(path(&board, "dwc3"), "/soc/usb@2000");
    assert_eq!(path(&board, "mmc"), "/soc/usb@2000", "an alias comes before a node name");
    assert_eq!(path(&board, "isp"), "/soc/isp@4000", "the enabled one is meant");
    assert_eq!(path(&board, "isp@5000"), "/soc/isp@5000");
    assert_eq!(board.iommu("dart0").expect("a label").path, "/iommu@1000");
    assert_eq!(board.iommu("iommu").expect("a name").path, "/iommu@1000");
}

#[test]
fn an_ambiguous_name_lists_the_paths() {
    let Err(LookupError::Ambiguous { candidates, matches, .. }) = board().device("usb").cloned()
    else {
        panic!("two usb nodes")
    };
    assert_eq!(candidates, ["/soc/usb@1000", "/soc/usb@2000"]);
    assert_eq!(matches, 2);
}

#[test]
fn an_unknown_name_lists_the_closest() {
    let Err(LookupError::Unknown { candidates, .. }) = board().device("ips").cloned() else {
        panic!("nothing has this name")
    };
    assert!(candidates.len() <= 8);
    assert!(
        candidates[0].starts_with("isp@") || candidates[0].starts_with("usb"),
        "{candidates:?}"
    );
    assert!(candidates.iter().any(|name| name == "isp@4000"));
    let message = board().device("usb@9999").expect_err("no such unit").to_string();
    assert!(
        message.ends_with("closest names: usb@1000, usb@2000, isp@4000, isp@5000, mmc@3000"),
        "{message}"
    );
    assert!(matches!(root().board().device(""), Err(LookupError::Unknown { .. })));
}

#[test]
fn what_is_no_device_says_so() {
    let board = board();
    for (name, path) in
        [("dart0", "/iommu@1000"), ("framebuffer", "/reserved-memory/framebuffer@9000")]
    {
        let error = board.device(name).expect_err("no device");
        assert_eq!(error, LookupError::NotADevice { name: name.into(), path: path.into() });
        assert_eq!(board.device_or_direct(name), Err(error));
    }
}

#[test]
fn any_enabled_node_can_be_named() {
    let board = board();
    assert!(board.device("serial").is_err());
    assert!(board.device_or_direct("serial").expect("promoted").is_direct());
    assert_eq!(board.device_or_direct("usb0").as_ref(), board.device("usb0").as_ref().copied());
    assert!(matches!(board.device_or_direct("isp@5000"), Err(LookupError::Disabled { .. })));
    assert!(matches!(board.device_or_direct("nothing"), Err(LookupError::Unknown { .. })));
}
