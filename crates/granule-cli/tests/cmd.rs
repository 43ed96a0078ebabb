//! The command as a person types it: every session below `tests/cmd` is run and compared.

#[test]
fn sessions() {
    trycmd::TestCases::new().case("tests/cmd/*.md");
}
