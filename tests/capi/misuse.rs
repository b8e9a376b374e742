use crate::support::{Language, engines, root, run_program, sample};

#[test]
fn c_program_gets_a_code_for_every_misuse_and_goes_on() {
    let program = Language::C99.program(&root().join("tests/capi/programs/misuse.c"));
    let printed = run_program(&program, &[engines().as_os_str(), sample().join("image.png").as_os_str()]);
    assert_eq!(printed, "0 failures\n");
}
